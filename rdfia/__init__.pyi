from rdfia import claims as claims
from rdfia import commands as commands
from rdfia import data as data
from rdfia import device as device
from rdfia import errors as errors
from rdfia import experiments as experiments
from rdfia import gans as gans
from rdfia import gradients as gradients
from rdfia import models as models
from rdfia import report as report
from rdfia import transfer as transfer

__version__: str
