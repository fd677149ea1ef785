"""Tuning a few parameters of a frozen model: PEFT's methods, and the Adapter and AdapterFusion that PEFT lacks.

settings.py says what can be asked for; methods.py attaches it to a model, storage.py saves, loads and switches it,
merge.py makes an ordinary checkpoint of it. prompts.py and bottleneck.py are the parts that PEFT cannot do here.
"""

from .methods import attach
from .settings import Tuning
from .storage import find_adapter, load_adapter, load_tuned, save_adapter, use

__all__ = ["Tuning", "attach", "find_adapter", "load_adapter", "load_tuned", "save_adapter", "use"]
