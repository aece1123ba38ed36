"""The `penstock` command: a thin user of the SDK.

`parser` says what can be typed, `main` runs it and turns failures into exit codes, `show` writes to people and scripts;
each command's own module is loaded when it is called, so that `penstock --help` is quick.
"""
