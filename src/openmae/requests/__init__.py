"""What can be said of a request before torch is loaded, which takes seconds: whether what it names is there.

Each command has a `check_COMMAND`, which `COMMANDS` names. It goes through what the command itself looks at, in that
order and with the same functions: what is refused here is refused in the same words there. None imports torch.
"""
