"""One straight function a command, in a package of its name where it has several parts."""
