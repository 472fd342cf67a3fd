"""Problems made here, each with a correct chain, a wrong one and a solver; no network is needed."""

from edit_trl.data.procedural.families import ANSWER_TYPES, Family
from edit_trl.data.procedural.teacher import ProceduralTeacher, generate_dual_cots

__all__ = ["ANSWER_TYPES", "Family", "ProceduralTeacher", "generate_dual_cots"]
