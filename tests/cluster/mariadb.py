# SPDX-License-Identifier: GPL-2.0-or-later
"""Private MariaDB servers, for storages with `--adapter MySQL`.

A server has its data and its socket in a temporary directory; nothing of the
system is used but the programs, that are searched in the usual places
(NEO_DB_MYSQLD and NEO_DB_INSTALL override). It ends with the test process.
"""

import atexit
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

# Durable: to be used where a server is killed.
DURABLE = '--innodb-flush-log-at-trx-commit=1',
# As if the machine never failed.
FAST = ('--innodb-flush-log-at-trx-commit=0', '--innodb-doublewrite=0',
        '--innodb-flush-method=nosync')

# ZODB's tests have a directory for temporary files each, that they remove.
TEMP = tempfile.gettempdir()

PASSWORD = 'neo%neo'    # what has a meaning in configuration files

_shared = None


def program(variable, *names):
    path = os.environ.get(variable)
    if path:
        return path
    search = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/usr/local/sbin',
                              '/usr/libexec'])
    for name in names:
        path = shutil.which(name, path=search)
        if path:
            return path
    raise FileNotFoundError(f'{names[0]} not found: install mariadb-server, or set {variable}')


def _popen(*args, **kw):
    """The signal of setpriv is sent when the *thread* that started the process ends."""
    started = queue.Queue()

    def run():
        try:
            started.put(subprocess.Popen(*args, **kw))
        except Exception as e:
            started.put(e)
        threading.Event().wait()
    threading.Thread(target=run, daemon=True).start()
    result = started.get()
    if isinstance(result, Exception):
        raise result
    return result


def shared():
    """The server of the tests that do nothing to it."""
    global _shared
    if _shared is None:
        _shared = Server(*FAST)
        atexit.register(_shared.remove)
    return _shared


class Server:

    def __init__(self, *settings, env=None):
        # Not in the directory of a test: the path of a socket is limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix='neo-mariadb-', dir=TEMP))
        self.socket = self.directory / 's'
        self._settings = settings
        self._env = {**os.environ, **(env or {})}
        self._process = None
        self._databases = 0
        self._user = ['--user=root'] if os.geteuid() == 0 else []
        install = program('NEO_DB_INSTALL', 'mariadb-install-db', 'mysql_install_db')
        with open(self.directory / 'log', 'ab') as log:
            subprocess.run(
                [install, '--no-defaults', f'--datadir={self.directory / "data"}',
                 '--auth-root-authentication-method=normal', '--skip-test-db',
                 '--innodb-log-file-size=16M', *self._user],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
        try:
            self.start()
        except BaseException:
            self.remove()
            raise

    def start(self):
        """Start it, and wait until it can be used."""
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self):
        with open(self.directory / 'log', 'ab') as log:
            self._process = _popen(
                ['setpriv', '--pdeathsig', 'KILL',
                 program('NEO_DB_MYSQLD', 'mariadbd', 'mysqld'), '--no-defaults',
                 f'--datadir={self.directory / "data"}', f'--socket={self.socket}',
                 f'--pid-file={self.directory / "pid"}', '--skip-networking',
                 '--max-allowed-packet=64M', '--performance-schema=OFF',
                 '--innodb-buffer-pool-size=64M', '--innodb-log-file-size=16M',
                 *self._settings, *self._user],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env)

    def wait_ready(self):
        import pymysql
        from cluster import wait_for

        def ready():
            assert self._process.poll() is None, (
                'MariaDB ended: ' + (self.directory / 'log').read_text(errors='replace')[-2000:])
            try:
                self.connect().close()
            except pymysql.err.OperationalError:
                return False
            return True
        wait_for(ready, 'MariaDB', 60)

    def signal(self, number):
        os.kill(self._process.pid, number)

    def kill9(self):
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self):
        self._process.terminate()
        self._process.wait(60)

    def remove(self):
        self.kill9()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def connect(self, database=None):
        import pymysql
        return pymysql.connect(user='root', unix_socket=str(self.socket), database=database,
                               autocommit=True)

    def new_database(self):
        """Name of a new database."""
        self._databases += 1
        name = f'neo{self._databases}'
        self.execute(f'CREATE DATABASE {name}')
        return name

    def execute(self, sql, database=None):
        """Execute a statement, as root. Returns the rows."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()


class Connection:
    """A connection to a database, used like one of the module sqlite3."""

    def __init__(self, server, database):
        self._connection = server.connect(database)

    def execute(self, sql, parameters=None):
        cursor = self._connection.cursor()
        sql = sql.replace('"partition"', '`partition`')
        if isinstance(parameters, dict):
            for name in parameters:
                sql = sql.replace(f':{name}', f'%({name})s')
        elif parameters:
            sql = sql.replace('?', '%s')
        cursor.execute(sql, parameters)
        return cursor

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()
