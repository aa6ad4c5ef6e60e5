# SPDX-License-Identifier: GPL-2.0-or-later
"""zodburi resolvers: `neo://name@master1,master2?options` and `neos://` (TLS).

Options of the storage may be written with "_" or "-"; all others are for the database. With
`neos://`, missing `ca`, `cert` and `key` come from $NEO_CA, $NEO_CERT and $NEO_KEY.
"""

import os
from urllib.parse import parse_qsl, unquote, urlsplit

_BOOLEANS = {'1': True, 'true': True, 'yes': True, 'on': True,
             '0': False, 'false': False, 'no': False, 'off': False}


def _boolean(value):
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise ValueError("not a boolean: %r" % value)


def _compress(value):
    return _BOOLEANS.get(value.lower(), value)


_OPTIONS = {
    'compress': _compress,
    'read_only': _boolean,
    'logfile': str,
    'cache_size': str,
    'dynamic_master_list': str,
    'ignore_wrong_checksum': _boolean,
    'pack_gc': _boolean,
    'connect_timeout': float,
    'ca': str,
    'cert': str,
    'key': str,
}


def parse(uri):
    """(keywords of Storage, options of the database)"""
    scheme, netloc, path, query, fragment = urlsplit(uri)
    if scheme not in ('neo', 'neos'):
        raise ValueError("invalid uri: %s : expected neo:// or neos:// scheme" % uri)
    if path or fragment:
        raise ValueError("invalid uri: %s : path and fragment must be empty" % uri)
    name, at, masters = netloc.rpartition('@')
    if not (name and at and masters):
        raise ValueError("invalid uri: %s : expected name@master1,master2" % uri)
    storage = {'master_nodes': masters.replace(',', ' '), 'name': unquote(name)}
    database = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        option = key.replace('-', '_')
        if option in ('master_nodes', 'name'):
            raise ValueError("invalid uri: %s : invalid option %s" % (uri, key))
        if option in _OPTIONS:
            try:
                storage[option] = _OPTIONS[option](value)
            except ValueError as e:
                raise ValueError("invalid uri: %s : option %s: %s" % (uri, key, e))
        else:
            database[key] = value
    if scheme == 'neos':
        for option in ('ca', 'cert', 'key'):
            if option not in storage:
                variable = 'NEO_' + option.upper()
                value = os.environ.get(variable)
                if not value:
                    raise ValueError("invalid uri: %s : option %s not specified and $%s not set"
                                     % (uri, option, variable))
                storage[option] = value
    return storage, database


def resolve_uri(uri):
    storage, database = parse(uri)

    def factory():
        from .Storage import Storage
        return Storage(**storage)

    return factory, database
