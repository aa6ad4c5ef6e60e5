# SPDX-License-Identifier: GPL-2.0-or-later
"""ZConfig: `%import neo.client` and `<NEOStorage>`."""

from ZConfig.datatypes import asBoolean
from ZODB.config import BaseConfig


class NeoStorage(BaseConfig):

    def open(self):
        from .Storage import Storage
        config = self.config
        return Storage(**{name: getattr(config, name)
                          for name in config.getSectionAttributes()})


def compress(value):
    """Boolean, or the name of an algorithm; `Storage` checks the latter."""
    try:
        return asBoolean(value)
    except ValueError:
        from .options import compression_level
        compression_level(value)
        return value
