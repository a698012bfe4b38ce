"""Where a run's numbers and pictures go besides its own folder: TensorBoard, Weights & Biases, MLflow.

base.py is the contract, carrier.py keeps a sink's slowness and errors away from training, one file is one sink, opening.py
picks them by the config. What stands in metrics.jsonl is the record; a sink only shows it.
"""
