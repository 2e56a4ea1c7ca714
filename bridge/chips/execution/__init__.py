"""How a chip's tiles are run: as ordinary layers and convolutions, or by AIHWKit."""
