from .chips import Chip as Chip
from .chips import Programmed as Programmed
from .chips import analog as analog
from .devices import Device as Device
