# SPDX-License-Identifier: GPL-2.0-or-later
"""A Zope of PyPI in an environment of its own, and instances of it.

The environment is made once, in `target/test-zope`, from
`tests/requirements-zope.txt`. The package `neo` is not installed there: Zope
imports the one that the tests import, through `PYTHONPATH`.
"""

import base64
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cluster import PATIENCE, ROOT, free_port, wait_for

REQUIREMENTS = ROOT / 'tests' / 'requirements-zope.txt'
ENVIRONMENT = ROOT / 'target' / 'test-zope'

# Seconds: Zope imports much.
BOOT = 4 * PATIENCE
# Seconds to make the environment.
INSTALL = 600


def python():
    """The interpreter of the environment, which is made if it is missing or outdated."""
    if sys.version_info < (3, 11):
        pytest.skip('the Zope of tests/requirements-zope.txt needs CPython 3.11')
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    stamp = ENVIRONMENT / 'stamp.txt'
    wanted = sys.version + '\n' + REQUIREMENTS.read_text()
    with open(f'{ENVIRONMENT}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(ENVIRONMENT, ignore_errors=True)
            for command in ([sys.executable, '-m', 'venv', ENVIRONMENT],
                            [ENVIRONMENT / 'bin' / 'python', '-m', 'pip', 'install', '-q',
                             '--disable-pip-version-check', '-r', REQUIREMENTS]):
                result = subprocess.run(command, text=True, capture_output=True, timeout=INSTALL)
                if result.returncode:
                    pytest.fail(f'{ENVIRONMENT} can not be made: it needs access to PyPI\n'
                                f'{result.stdout}{result.stderr}'[-3000:], pytrace=False)
            stamp.write_text(wanted)
    return ENVIRONMENT / 'bin' / 'python'


def environment(directory):
    """Variables with which that interpreter finds the package `neo`, and nothing else, here."""
    import neo
    from importlib.metadata import distribution
    path = directory / 'pythonpath'
    if not path.exists():
        path.mkdir()
        package, = {Path(x).resolve() for x in neo.__path__}
        (path / 'neo').symlink_to(package)
        # Entry points.
        metadata = Path(distribution('neo-zodb')._path)
        (path / metadata.name).symlink_to(metadata)
    return {**os.environ, 'PYTHONPATH': str(path)}


ZOPE_INI = '''
[app:zope]
use = egg:Zope#main
zope_conf = %(here)s/zope.conf

[server:main]
use = egg:waitress#main
host = 127.0.0.1
port = {port}

[pipeline:main]
pipeline =
    egg:Zope#httpexceptions
    zope

[loggers]
keys = root

[handlers]
keys = console

[formatters]
keys = generic

[logger_root]
level = INFO
handlers = console

[handler_console]
class = StreamHandler
args = (sys.stderr,)
level = NOTSET
formatter = generic

[formatter_generic]
format = %(asctime)s %(levelname)s [%(name)s] %(message)s
'''

ZOPE_CONF = '''
%define INSTANCE {directory}
instancehome $INSTANCE
{database}
'''

FILESTORAGE = '''
<zodb_db main>
    <filestorage>
        path $INSTANCE/Data.fs
    </filestorage>
    mount-point /
</zodb_db>
'''

NEOSTORAGE = '''
%import neo.client
<zodb_db main>
    <NEOStorage>
        master_nodes {master_nodes}
        name {name}
        cache-size 10MB
    </NEOStorage>
    mount-point /
</zodb_db>
'''


class Zope:
    """One instance: `zope.conf`, `zope.ini`, and at most one process."""

    PASSWORD = 'secret'

    def __init__(self, directory, database):
        self.python = python()
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.log = directory / 'zope.log'
        self.process = None
        (directory / 'zope.ini').write_text(ZOPE_INI.format(port=self.port))
        (directory / 'inituser').write_text(f'admin:{self.PASSWORD}\n')
        self.use(database)

    def use(self, database):
        """What `zope.conf` says of the database."""
        (self.directory / 'zope.conf').write_text(
            ZOPE_CONF.format(directory=self.directory, database=database))

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def start(self):
        with open(self.log, 'ab') as log:
            self.process = subprocess.Popen(
                ['setpriv', '--pdeathsig', 'KILL', self.python, '-m', 'Zope2.Startup.serve',
                 self.directory / 'zope.ini'], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, env=environment(self.directory))
        wait_for(self._answers, 'Zope to answer', BOOT, .2)
        return self

    def _answers(self):
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return self.get('/') is not None
        except ConnectionRefusedError:
            return False

    def stop(self):
        """As an administrator does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        self.process = None

    def request(self, path, form=None):
        """Body of a page, asked by the manager; None if there is no such page."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}{path}', data)
        token = base64.b64encode(f'admin:{self.PASSWORD}'.encode()).decode()
        request.add_header('Authorization', f'Basic {token}')
        try:
            with urllib.request.urlopen(request, timeout=BOOT) as response:
                return response.read().decode()
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            raise AssertionError(f'{path}: {e} {e.read().decode()[-2000:]}\n'
                                 f'{self.log.read_text()[-3000:]}') from None
        except urllib.error.URLError as e:
            raise e.reason

    def get(self, path):
        return self.request(path)

    def post(self, path, **form):
        return self.request(path, form)
