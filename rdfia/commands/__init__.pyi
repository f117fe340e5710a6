from rdfia.commands import arguments as arguments
from rdfia.commands import assets as assets
from rdfia.commands import features as features
from rdfia.commands import images as images
from rdfia.commands import results as results
from rdfia.commands import runs as runs
from rdfia.commands import training as training
