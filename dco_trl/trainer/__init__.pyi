from .callbacks import PassAtKCallback as PassAtKCallback
from .cot_config import CoTDCOConfig as CoTDCOConfig
from .cot_trainer import CoTDCOTrainer as CoTDCOTrainer
from .dco_config import DCOConfig as DCOConfig
from .dco_trainer import DCOTrainer as DCOTrainer
