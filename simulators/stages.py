"""All stage models in one place."""

from hzo_hil.simulators.elementwise import Elementwise
from hzo_hil.simulators.emulated import EmulatedLinear
from hzo_hil.simulators.mesh_stage import MeshStage
from hzo_hil.simulators.model import Parameter, Port, StageModel
from hzo_hil.simulators.svd_stage import SVDStage

__all__ = ["Elementwise", "EmulatedLinear", "MeshStage", "Parameter", "Port", "SVDStage", "StageModel"]
