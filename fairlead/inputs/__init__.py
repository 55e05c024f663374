"""What a result was made from: the settings of a stage, and the contents of its data and models by digest.

`fairlead/local` and the trainer compare it at the start of a stage. Does not read records or tensors.
"""

from fairlead.inputs.stage_inputs import StageInputs, collect, differences, record_start, warn_if_continued

__all__ = ["StageInputs", "collect", "differences", "record_start", "warn_if_continued"]
