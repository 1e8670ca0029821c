"""All stage models in one place."""

from hzo_hil.simulators.conv_core import ConvCore
from hzo_hil.simulators.conv_unit import ConvUnit
from hzo_hil.simulators.crossbar import Crossbar
from hzo_hil.simulators.diffractive import Diffractive
from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.emulated_conv import EmulatedConv
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.model import Parameter, Port, Reach, StageModel
from hzo_hil.simulators.residual_block import ResidualBlock
from hzo_hil.simulators.ring_bank import RingBank
from hzo_hil.simulators.svd_stage import SVDStage
from hzo_hil.simulators.tensor_core import TensorCore

__all__ = [
    "ConvCore",
    "ConvUnit",
    "Crossbar",
    "Diffractive",
    "Elementwise",
    "EmulatedConv",
    "EmulatedLinear",
    "MeshStage",
    "Parameter",
    "Port",
    "Reach",
    "ResidualBlock",
    "RingBank",
    "SVDStage",
    "StageModel",
    "TensorCore",
]
