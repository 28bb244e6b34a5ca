"""The command line: thin shells over the other rooms. Only this room prints and reads the environment."""
