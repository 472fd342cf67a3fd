"""Where dual CoTs come from (L3)."""

from edit_trl.teachers.families import ANSWER_TYPES, Family
from edit_trl.teachers.procedural import ProceduralTeacher, generate_dual_cots

__all__ = ["ANSWER_TYPES", "Family", "ProceduralTeacher", "generate_dual_cots"]
