"""What the stages share, in rooms; each imports only those below it, which `make lint` proves.

experiments   presets, DVC's experiments, the zoo, verification
results       evaluation, figures
training      the loop, the optimiser, augmentation, checkpoints
network       LeNet, its quick form for processors, its description, the model file
data          the data sets, mirrors, IDX files, tensors
"""
