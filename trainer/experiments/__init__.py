"""The figures of a stage in the tools that users compare runs with: TensorBoard, W&B, MLflow.

`choice` opens those that a run asks for; the tracker writes to them. No stage reads them back, and no failure
of one stops a stage.
"""
