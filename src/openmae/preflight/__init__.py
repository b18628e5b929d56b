"""Checks of a command's settings against the disk, made before torch is loaded, which takes seconds.

For each command there is a `check_COMMAND`; `COMMANDS` says in which module. It makes the same checks as the command
itself, in the same order and with the same functions, so that an error reads the same wherever it is raised. Nothing
here imports torch, and what needs torch (is there such a GPU, can the images be decoded) is left to the command.
"""
