"""Mutate a group of modules, run its tests on each mutant, and print how many were noticed.

    python -m mutation GROUP [MODULE ...] [--sample N] [--fresh]      (in tests/, or with it on PYTHONPATH)

mutmut works on a copy of the tree in `build/mutation/GROUP`. A second run takes up what was left: mutants that were
noticed and whose function has not changed are not run again. `mutmut show NAME` in that folder prints a mutant.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from mutmut.stats import status_by_exit_code

from mutation.groups import GROUPS, Group

ROOT = Path(__file__).parent.parent.parent
IGNORED = shutil.ignore_patterns("__pycache__", ".hypothesis")
SEED = 5
NOTICED = ("killed", "timeout", "segfault")


def prepare(group: Group, scratch: Path) -> None:
    """Copy the tree, and write mutmut's settings beside it."""
    # mutmut copies the tests here; Python would never look again into a folder that was not there when it started
    (scratch / "mutants" / "tests").mkdir(parents=True, exist_ok=True)
    for folder in ("node", "tests"):
        shutil.copytree(ROOT / folder, scratch / folder, ignore=IGNORED, dirs_exist_ok=True)
    selection = [path for path in group.tests if (ROOT / path.split("::")[0]).exists()]
    for test in group.without:
        selection += ["--deselect", test]
    settings = {
        "source_paths": ["node"],
        "only_mutate": list(group.modules),
        "pytest_add_cli_args": ["-p", "mutation.few_examples", "-p", "no:cacheprovider", "--timeout=60"],
        "pytest_add_cli_args_test_selection": [*selection, "-m", "not swarm and not e2e"],
        "timeout_multiplier": 5.0,
        "timeout_constant": 2.0,
        "use_git_change_detection": False,
        "track_dependencies": False,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text()
    (scratch / "pyproject.toml").write_text(project + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n")


def outcomes(scratch: Path, module: str) -> dict[str, int | None]:
    """Return the exit code of the tests on each mutant of a module; None if they were not run."""
    meta = scratch / "mutants" / f"{module}.meta"
    return json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}


def forget_survivors(scratch: Path, module: str) -> None:
    """Let the mutants that nobody noticed be run again: there may be a test for them by now."""
    meta = scratch / "mutants" / f"{module}.meta"
    if meta.exists():
        content = json.loads(meta.read_text())
        codes = content["exit_code_by_key"]
        content["exit_code_by_key"] = {
            name: code if status_by_exit_code[code] in NOTICED else None for name, code in codes.items()
        }
        meta.write_text(json.dumps(content))
    for stats in (scratch / "mutants").glob("mutmut-stats.json"):
        stats.unlink()


def run_mutmut(scratch: Path, names: list[str]) -> None:
    """Run mutmut, one mutant at a time and politely."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(scratch / "mutants" / "tests"),
        "PYTHONHASHSEED": "0",
    }
    command = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", "1", *names]
    subprocess.run(command, cwd=scratch, env=environment, check=True, preexec_fn=lambda: os.nice(19))


def check_that_nothing_is_seen_where_nothing_is(scratch: Path, modules: list[str]) -> None:
    """Run a mutant of each module that is none: a test that fails without a cause would raise every score.

    Raises:
        SystemExit: such a test was found.
    """
    controls = {}
    tests = json.loads((scratch / "mutants" / "mutmut-stats.json").read_text())["tests_by_mangled_function_name"]
    for module in modules:
        functions = {name.rpartition("__mutmut_")[0] for name in outcomes(scratch, module)}
        if functions:
            controls[module] = max(sorted(functions), key=lambda name: len(tests.get(name, ()))) + "__mutmut_0"
            set_outcome(scratch, module, controls[module], None)
    run_mutmut(scratch, [])
    codes = {module: outcomes(scratch, module)[name] for module, name in controls.items()}
    for module, name in controls.items():
        set_outcome(scratch, module, name, "forget")
    if any(codes.values()):
        raise SystemExit(f"tests fail without a mutant: {codes}")


def set_outcome(scratch: Path, module: str, name: str, code: int | Literal["forget"] | None) -> None:
    """Write the outcome of one mutant into mutmut's books."""
    meta = scratch / "mutants" / f"{module}.meta"
    content = json.loads(meta.read_text())
    content["exit_code_by_key"][name] = code
    if code == "forget":
        for book in content.values():
            book.pop(name, None)
    meta.write_text(json.dumps(content))


def names_of(scratch: Path, module: str) -> list[str]:
    """Return the names of all mutants of a module, which mutmut has not made yet."""
    program = (
        "import sys\nfrom mutmut.mutation.file_mutation import mutate_file_contents\n"
        "from mutmut.utils.format_utils import get_mutant_name\n"
        "made = mutate_file_contents(sys.argv[1], open(sys.argv[1]).read(), None, None)\n"
        "print('\\n'.join(str(get_mutant_name(sys.argv[1], name)) for name in made.mutant_names))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, module], cwd=scratch, capture_output=True, text=True, check=True
    )
    return run.stdout.split()


def table(scratch: Path, modules: list[str]) -> str:
    """Return one line a module: what became of its mutants."""
    lines = [
        "| module | mutants | run | noticed | of these by a timeout | not noticed | score |",
        "|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for module in modules:
        codes = outcomes(scratch, module)
        found = Counter(status_by_exit_code[code] for code in codes.values() if code is not None)
        noticed, ran = sum(found[status] for status in NOTICED), sum(found.values())
        total.update({"all": len(codes), "ran": ran, "noticed": noticed, "timeout": found["timeout"]})
        lines.append(row(f"`{module.removeprefix('node/')}`", len(codes), ran, noticed, found["timeout"]))
    lines.append(row("together", total["all"], total["ran"], total["noticed"], total["timeout"]))
    return "\n".join(lines)


def row(name: str, num_all: int, ran: int, noticed: int, timeout: int) -> str:
    """Return a line of the table."""
    score = f"{noticed / ran:.0%}" if ran else "–"
    return f"| {name} | {num_all} | {ran} | {noticed} | {timeout} | {ran - noticed} | {score} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="mutation")
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("modules", nargs="*", help="of the group; all of them if none is named")
    parser.add_argument(
        "--sample", type=int, help="at most so many mutants of each module, by chance with a fixed seed"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs have found")
    parser.add_argument("--only-report", action="store_true")
    chosen = parser.parse_args()
    group, scratch = GROUPS[chosen.group], ROOT / "build" / "mutation" / chosen.group
    modules = chosen.modules or list(group.modules)
    if not chosen.only_report:
        if chosen.fresh:
            shutil.rmtree(scratch, ignore_errors=True)
        prepare(group, scratch)
        for module in modules:
            forget_survivors(scratch, module)
        names = []
        if chosen.sample or chosen.modules:
            for module in modules:
                found = names_of(scratch, module)
                names += random.Random(SEED).sample(found, min(chosen.sample or len(found), len(found)))
        run_mutmut(scratch, names)
        check_that_nothing_is_seen_where_nothing_is(scratch, modules)
    print(table(scratch, modules))
    for module in modules:
        for name, code in outcomes(scratch, module).items():
            if code is not None and status_by_exit_code[code] not in NOTICED:
                print(f"{status_by_exit_code[code]}: {name}")


if __name__ == "__main__":
    main()
