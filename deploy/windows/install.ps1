<#
.SYNOPSIS
Sets up a node of Potluck on Windows 11: in WSL2, with the GPU, reachable from the network, started when you log in.

.DESCRIPTION
Read it before you run it. Each step looks whether there is something to do and asks before it does it; running it again
does no harm. -WhatIf only says what it would do; -Confirm:$false asks nothing. It touches: Windows' WSL feature, a Linux of
its own named Potluck, %UserProfile%\.wslconfig, one rule of the Hyper-V firewall, one scheduled task.
Run it from a clone of Potluck, as administrator in your own account:

    powershell -ExecutionPolicy Bypass -File deploy\windows\install.ps1 -WhatIf

To undo it:

    Unregister-ScheduledTask Potluck; Remove-NetFirewallHyperVRule -Name Potluck; wsl --unregister Potluck

NOT YET RUN ON A REAL WINDOWS MACHINE.

.PARAMETER NodeArguments
What the node does at each login, as after `potluck` on Linux, where C:\Users\you is /mnt/c/Users/you:
"start /mnt/c/Users/you/recipe.yaml --data /mnt/c/Users/you/mine.jsonl", or "join <address> --lend".
Without it nothing is started at login.

.PARAMETER Port
The TCP port that other nodes dial.
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding(SupportsShouldProcess, ConfirmImpact = 'High')]
param(
    [string] $NodeArguments = '',
    [ValidateRange(1, 65535)] [int] $Port = 4040
)

Set-StrictMode -Version 3
$ErrorActionPreference = 'Stop'
$env:WSL_UTF8 = '1'   # else wsl.exe answers in UTF-16

$Linux = 'Potluck'
$Image = 'Ubuntu-24.04'
$WslCreator = '{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}'   # WSL's virtual machines, in Microsoft's words
$Repository = (Resolve-Path (Join-Path $PSScriptRoot '..\..')).Path
$WslConfig = Join-Path $env:USERPROFILE '.wslconfig'

function Invoke-Wsl {
    & wsl.exe @args
    if ($LASTEXITCODE -ne 0) { throw "wsl $args ended with code $LASTEXITCODE. Its own words stand above." }
}

# 1. Mirrored networking, without which nobody can dial the node, came with Windows 11 22H2.
$Build = [Environment]::OSVersion.Version.Build
if ($Build -lt 22621) { throw "This is Windows build $Build; Potluck needs Windows 11 22H2 (22621) or newer." }

# 2. WSL itself. A fresh one needs a restart of Windows before it works.
$null = & wsl.exe --version
if ($LASTEXITCODE -ne 0) {
    if ($PSCmdlet.ShouldProcess('Windows', 'Install the Windows Subsystem for Linux')) {
        Invoke-Wsl --install --no-distribution
        Write-Output 'WSL is installed. Restart Windows, then run this script again.'
    }
    return
}

# 3. Mirrored networking, for all Linuxes under WSL; they are stopped for it.
$Text = if (Test-Path $WslConfig) { [IO.File]::ReadAllText($WslConfig) } else { '' }
if ($Text -notmatch '(?im)^\s*networkingMode\s*=\s*mirrored\s*$') {
    if ($Text -match '(?im)^\s*networkingMode\s*=') {
        throw "$WslConfig sets another networkingMode. Change it to mirrored there, then run this script again."
    }
    if ($PSCmdlet.ShouldProcess($WslConfig, 'Set networkingMode=mirrored, and stop every Linux that runs under WSL')) {
        $Line = "[wsl2]`r`nnetworkingMode=mirrored"
        $HasSection = [regex] '(?im)^[ \t]*\[wsl2\][ \t]*\r?$'
        $New = if ($HasSection.IsMatch($Text)) { $HasSection.Replace($Text, $Line, 1) } else { "$Line`r`n`r`n$Text" }
        [IO.File]::WriteAllText($WslConfig, $New)
        Invoke-Wsl --shutdown
    }
}

# 4. The firewall between the network and WSL: one port in.
if (-not (Get-NetFirewallHyperVRule -Name $Linux -ErrorAction SilentlyContinue)) {
    if ($PSCmdlet.ShouldProcess("TCP port $Port", 'Let other machines connect to WSL')) {
        $null = New-NetFirewallHyperVRule -Name $Linux -DisplayName 'Potluck' -Direction Inbound -Action Allow `
            -VMCreatorId $WslCreator -Protocol TCP -LocalPorts $Port
    }
}

# 5. A Linux of its own, so that no other one is touched.
$Installed = @(& wsl.exe --list --quiet) -contains $Linux
if (-not $Installed -and $PSCmdlet.ShouldProcess("$Image as $Linux", 'Download and install')) {
    Invoke-Wsl --update   # --name came with WSL 2.4.4
    Invoke-Wsl --install --distribution $Image --name $Linux --no-launch
    $Installed = $true
}

# 6. Potluck in it. PyTorch brings CUDA; the driver is that of Windows.
if ($Installed -and $PSCmdlet.ShouldProcess($Linux, 'Install or update Potluck, with about 5 GB of packages')) {
    Invoke-Wsl --distribution $Linux --user root --cd $Repository --exec sh deploy/windows/inside-wsl
}

# 7. At login: a window with the node in it. To close it is to leave the swarm, saved.
if ($NodeArguments -and $PSCmdlet.ShouldProcess('Scheduled task Potluck', "At login: potluck $NodeArguments")) {
    $Command = "--distribution $Linux --user potluck --cd ~ --exec /opt/potluck/bin/potluck $NodeArguments"
    $Task = @{
        TaskName  = $Linux
        Action    = New-ScheduledTaskAction -Execute 'wsl.exe' -Argument $Command
        Trigger   = New-ScheduledTaskTrigger -AtLogOn -User "$env:USERDOMAIN\$env:USERNAME"
        Settings  = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -AllowStartIfOnBatteries `
            -DontStopIfGoingOnBatteries -MultipleInstances IgnoreNew
    }
    $null = Register-ScheduledTask @Task -Force
    Write-Output "Start it now with:  Start-ScheduledTask $Linux"
}
