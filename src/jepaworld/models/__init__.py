"""World models: the protocol, the JEPA and its parts, the state decoder; building and loading them."""

from jepaworld.models.building import build, build_decoder, load, load_decoder
from jepaworld.models.jepa import JEPA
from jepaworld.models.protocol import WorldModel
from jepaworld.models.state_decoder import JEPAStateDecoder

__all__ = ["JEPA", "JEPAStateDecoder", "WorldModel", "build", "build_decoder", "load", "load_decoder"]
