"""What a command needs of the machine: devices, packages, signals, exit on errors."""
