from .carried import carried as carried
from .chips import Chip as Chip
from .chips import Programmed as Programmed
from .chips import analog as analog
from .devices import Device as Device
from .files import load_programmed as load_programmed
from .files import save_programmed as save_programmed
from .prediction import predict as predict
