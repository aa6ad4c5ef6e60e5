// SPDX-License-Identifier: GPL-2.0-or-later
//! The client of one cluster.

use std::cell::Cell;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use neo_client::{Compression, Error, Options, Record};
use neo_common::types::{Oid, Tid, Ttid};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::convert::{oid, optional_tid, py_data, py_oid, py_oids, py_tid, tid};
use crate::errors::waiting;
use crate::iterate::{CurrentRecords, Oids, Records, Transactions, UndoLog, info_tuple};
use crate::transaction::{PyResolver, Transaction};

/// Data, serial, and serial of the next revision.
type Loaded<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>);

/// A client of one cluster.
#[pyclass(frozen, module = "neo.client._native")]
pub struct Client {
    client: neo_client::Client,
}

fn resolve(addresses: &[String]) -> PyResult<Vec<SocketAddr>> {
    let mut resolved = Vec::new();
    for address in addresses {
        let found = address
            .to_socket_addrs()
            .map_err(|e| PyValueError::new_err(format!("master address {address:?}: {e}")))?;
        resolved.extend(found);
    }
    Ok(resolved)
}

/// Lets Ctrl-C and other signals end what waits in the main thread.
fn check_signals() -> neo_client::Result<()> {
    // Once the interpreter ends, threads that wait end with the process.
    Python::try_attach(|py| py.check_signals()).unwrap_or(Ok(())).map_err(Error::foreign)
}

fn py_record<'py>(py: Python<'py>, record: &Record) -> Loaded<'py> {
    (
        py_data(py, &record.data),
        py_tid(py, record.serial),
        record.next_serial.map(|next| py_tid(py, next)),
    )
}

#[pymethods]
impl Client {
    /// `masters`: list of `host:port`. `compress`: -1 for the default level, 0 for none, 1 to 9.
    #[new]
    #[pyo3(signature = (name, masters, *, read_only, compress, cache_size, ignore_wrong_checksum,
        dynamic_master_list = None, connect_timeout = None))]
    #[allow(clippy::too_many_arguments)] // Keywords of the constructor.
    fn new(
        py: Python<'_>,
        name: String,
        masters: Vec<String>,
        read_only: bool,
        compress: i32,
        cache_size: usize,
        ignore_wrong_checksum: bool,
        dynamic_master_list: Option<PathBuf>,
        connect_timeout: Option<f64>,
    ) -> PyResult<Self> {
        let mut options = Options::new(name, py.detach(|| resolve(&masters))?);
        options.read_only = read_only;
        options.compression = match compress {
            0 => Compression::None,
            1..=9 => Compression::Zlib(Some(compress as u8)),
            _ => Compression::Zlib(None),
        };
        options.cache_bytes = cache_size;
        options.ignore_wrong_checksum = ignore_wrong_checksum;
        options.dynamic_master_list = dynamic_master_list;
        options.connect_timeout = connect_timeout
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(|e| PyValueError::new_err(format!("connect_timeout: {e}")))?;
        let client = waiting(py, || neo_client::Client::open(options))?;
        client.set_interrupt(Arc::new(check_signals));
        Ok(Self { client })
    }

    /// Waits until the cluster can be used; number of partitions.
    fn connect(&self, py: Python<'_>) -> PyResult<u32> {
        waiting(py, || self.client.connect())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.client.close());
    }

    /// Calls `listener.invalidate(tid, oids)` and `listener.invalidateCache()`.
    fn set_listener(&self, py: Python<'_>, listener: Py<PyAny>) {
        let listener = Arc::new(Listener(listener));
        py.detach(|| self.client.set_listener(listener));
    }

    fn load<'py>(&self, py: Python<'py>, oid_: &[u8]) -> PyResult<Loaded<'py>> {
        let oid = oid(oid_)?;
        let record = match self.client.try_cached(oid, None) {
            Some(record) => record,
            None => waiting(py, || self.client.load(oid))?,
        };
        Ok(py_record(py, &record))
    }

    fn load_before<'py>(
        &self,
        py: Python<'py>,
        oid_: &[u8],
        before: &[u8],
    ) -> PyResult<Option<Loaded<'py>>> {
        // Some checkers load "before nothing".
        if before.is_empty() {
            return Ok(None);
        }
        let (oid, before) = (oid(oid_)?, tid(before)?);
        let record = match self.client.try_cached(oid, Some(before)) {
            Some(record) => Some(record),
            None => waiting(py, || self.client.load_before(oid, before))?,
        };
        if let Some(record) = &record {
            self.wait_until_told(py, record.serial)?;
        }
        Ok(record.map(|record| py_record(py, &record)))
    }

    fn load_serial<'py>(
        &self,
        py: Python<'py>,
        oid_: &[u8],
        serial: &[u8],
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (oid, serial) = (oid(oid_)?, tid(serial)?);
        Ok(py_data(py, &waiting(py, || self.client.load_serial(oid, serial))?.data))
    }

    fn prefetch(&self, py: Python<'_>, oids: Vec<Vec<u8>>, before: &[u8]) -> PyResult<()> {
        let oids = oids.iter().map(|bytes| oid(bytes)).collect::<PyResult<Vec<_>>>()?;
        let before = tid(before)?;
        waiting(py, || self.client.prefetch(&oids, before))
    }

    /// List of (tid, stored size), newest first.
    fn history<'py>(
        &self,
        py: Python<'py>,
        oid_: &[u8],
        count: u64,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, u64)>> {
        let oid = oid(oid_)?;
        let history = waiting(py, || self.client.history(oid, count))?;
        Ok(history.into_iter().map(|(tid, size)| (py_tid(py, tid), size)).collect())
    }

    /// (tid, user, description, extension, packed, oids)
    fn transaction_info<'py>(&self, py: Python<'py>, tid_: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let tid = tid(tid_)?;
        let info = waiting(py, || self.client.transaction_info(tid))?;
        info_tuple(py, &info)
    }

    /// The tid of a transaction, if it is committed.
    fn final_tid<'py>(
        &self,
        py: Python<'py>,
        ttid: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let ttid = Ttid::new(tid(ttid)?.get());
        let tid = waiting(py, || self.client.final_tid(ttid))?;
        Ok(tid.map(|tid| py_tid(py, tid)))
    }

    /// Transactions in order, both bounds included.
    #[pyo3(signature = (start = None, stop = None))]
    fn iterate(&self, start: Option<&[u8]>, stop: Option<&[u8]>) -> PyResult<Transactions> {
        Ok(Transactions::new(self.client.iterate(optional_tid(start)?, optional_tid(stop)?)))
    }

    /// Records of a transaction that wrote these objects.
    fn records(&self, tid_: &[u8], oids: Vec<Vec<u8>>) -> PyResult<Records> {
        let info = neo_client::TransactionInfo {
            tid: tid(tid_)?,
            user: Bytes::new(),
            description: Bytes::new(),
            extension: Bytes::new(),
            packed: false,
            oids: oids.iter().map(|bytes| oid(bytes)).collect::<PyResult<_>>()?,
        };
        Ok(Records::new(self.client.records(&info)))
    }

    /// Transactions, newest first.
    fn undo_log(&self) -> UndoLog {
        UndoLog::new(self.client.undo_log())
    }

    /// Oids of objects that exist at a tid.
    #[pyo3(signature = (tid = None, min_oid = None, max_oid = None))]
    fn oids(
        &self,
        tid: Option<&[u8]>,
        min_oid: Option<&[u8]>,
        max_oid: Option<&[u8]>,
    ) -> PyResult<Oids> {
        let min = min_oid.map(oid).transpose()?.unwrap_or(Oid::ZERO);
        let max = max_oid.map(oid).transpose()?;
        Ok(Oids::new(self.client.oids(optional_tid(tid)?, min, max)))
    }

    /// Current revisions, in order of oid.
    fn current_records(&self, min_oid: &[u8]) -> PyResult<CurrentRecords> {
        Ok(CurrentRecords::new(self.client.current_records(oid(min_oid)?)))
    }

    fn new_oid<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(py_oid(py, waiting(py, || self.client.new_oid())?))
    }

    fn last_oid<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(py_oid(py, waiting(py, || self.client.last_oid())?))
    }

    fn last_tid<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(py_tid(py, waiting(py, || self.client.last_tid())?))
    }

    fn sync<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(py_tid(py, waiting(py, || self.client.sync())?))
    }

    /// `resolver(oid, committed, base, data, committed_data)` returns data or raises.
    #[pyo3(signature = (resolver, tid = None))]
    fn begin(
        &self,
        py: Python<'_>,
        resolver: Py<PyAny>,
        tid: Option<&[u8]>,
    ) -> PyResult<Transaction> {
        let tid = optional_tid(tid)?;
        let resolver = Box::new(PyResolver(resolver));
        let transaction = waiting(py, || self.client.begin(tid, resolver))?;
        Ok(Transaction::new(transaction))
    }

    /// Id of the pack order; `None` if there was nothing to do.
    #[pyo3(signature = (tid, oids = None, wait = true))]
    fn pack<'py>(
        &self,
        py: Python<'py>,
        tid: &[u8],
        oids: Option<Vec<Vec<u8>>>,
        wait: bool,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let tid = crate::convert::tid(tid)?;
        let parse = |oids: Vec<Vec<u8>>| oids.iter().map(|b| oid(b)).collect::<PyResult<Vec<_>>>();
        let oids = oids.map(parse).transpose()?;
        let id = waiting(py, || self.client.pack(tid, oids, wait))?;
        Ok(id.map(|id| py_tid(py, id)))
    }

    fn wait_for_pack(&self, py: Python<'_>, id: &[u8]) -> PyResult<()> {
        let id = tid(id)?;
        waiting(py, || self.client.wait_for_pack(id))
    }
}

impl Client {
    /// Waits until this client was told of a transaction that it has just seen.
    ///
    /// ZODB loads what it was told of. Others, that load what is current, would see a revision that
    /// is newer than the last transaction. Who is being told must not wait for itself.
    fn wait_until_told(&self, py: Python<'_>, serial: Tid) -> PyResult<()> {
        // Usually it was told long ago: nothing to wait for, and the interpreter is not released.
        let is_told = || self.client.known_tid().is_some_and(|last| serial <= last);
        if TELLING.get() || is_told() {
            return Ok(());
        }
        waiting(py, || self.client.sync())?;
        Ok(())
    }
}

thread_local! {
    /// Whether this thread runs what must end before the last tid moves.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

/// Calls what must end before the last tid moves.
pub fn telling<T>(call: impl FnOnce() -> T) -> T {
    let before = TELLING.replace(true);
    let result = call();
    TELLING.set(before);
    result
}

/// A `ZODB.DB`, or what stands between.
struct Listener(Py<PyAny>);

impl Listener {
    fn tell(&self, method: &str, call: impl FnOnce(Python<'_>, &Bound<'_, PyAny>) -> PyResult<()>) {
        Python::attach(|py| {
            // An application that fails here may miss an invalidation: it must be seen, and the
            // other events must still be told.
            if let Err(error) = telling(|| call(py, self.0.bind(py))) {
                log::error!("{method} failed: {error}");
                error.print(py);
            }
        });
    }
}

impl neo_client::Listener for Listener {
    fn invalidate(&self, tid: Tid, oids: &[Oid]) {
        self.tell("invalidate", |py, listener| {
            listener.call_method1("invalidate", (py_tid(py, tid), py_oids(py, oids)))?;
            Ok(())
        });
    }
    fn invalidate_cache(&self) {
        self.tell("invalidateCache", |_, listener| {
            listener.call_method0("invalidateCache")?;
            Ok(())
        });
    }
}
