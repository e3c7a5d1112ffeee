"""What comes in from files and from the network, damaged and hostile: mutated, cut, repeated, endless, too much.

`mutate.py` damages, `seeds.py` has what is valid, `doors.py` and `files.py` have the targets: functions of bytes that
must come to a valid end or to an error of ours. Three drivers share them: a loop of many thousand mutations
(`test_volume.py`), hypothesis (`test_cases.py`), and coverage-guided fuzzing (`guided.py`). `cases/` keeps what was found.
"""
