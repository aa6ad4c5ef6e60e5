# SPDX-License-Identifier: GPL-2.0-or-later
from collections.abc import Callable
from typing import Any

from .Storage import Storage

def parse(uri: str) -> tuple[dict[str, Any], dict[str, str]]: ...
def resolve_uri(uri: str) -> tuple[Callable[[], Storage], dict[str, str]]: ...
