# SPDX-License-Identifier: GPL-2.0-or-later
"""The ZODB storage: `neo.client.Storage.Storage`.

Importing this package is cheap: the storage and its native half are loaded when first used.
"""
