from .coverage import coverage_loss as coverage_loss
from .coverage import coverage_weight as coverage_weight
from .coverage import log_coverage as log_coverage
from .trainer import CoTDCOConfig as CoTDCOConfig
from .trainer import CoTDCOTrainer as CoTDCOTrainer
from .trainer import DCOConfig as DCOConfig
from .trainer import DCOTrainer as DCOTrainer
from .trainer import PassAtKCallback as PassAtKCallback

__version__: str
