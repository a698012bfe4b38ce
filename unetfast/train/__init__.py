"""Training; `loop.py` is the story.

The package has the name of the public function `unetfast.train`, and importing anything of it makes it that attribute. So the
package itself can be called: `unetfast.train(...)` is `unetfast.train.api.train(...)`, whatever was imported before.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from unetfast.train.api import train

        return train(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
