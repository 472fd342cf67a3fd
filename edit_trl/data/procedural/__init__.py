"""Procedural problems, each with a correct chain, a wrong chain and a solver; they need no network."""

from edit_trl.data.procedural.families import ANSWER_TYPES, Family
from edit_trl.data.procedural.teacher import ProceduralTeacher, generate_dual_cots

__all__ = ["ANSWER_TYPES", "Family", "ProceduralTeacher", "generate_dual_cots"]
