// SPDX-License-Identifier: GPL-2.0-or-later
//! Secondary role: following the primary master, and taking over when it is gone. Upstream:
//! master/app.py, `playSecondaryRole`.
//!
//! The secondary keeps a connection to the primary. When it is lost, the same address is tried
//! again, then each other known master once. When all are down or secondary, this master plays the
//! primary role.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use neo_common::engine::{ConnId, Io};
use neo_common::node::{Link, Node, NodeKey};
use neo_common::protocol::NodeState;

use crate::app::Master;
use crate::cluster::Cluster;
use crate::handlers::election::PrimaryHandler;
use crate::phase::{Transition, disconnect_all};

/// State of the secondary role.
#[derive(Debug)]
pub struct Secondary {
    /// The master that is, or may be, primary.
    primary: NodeKey,
    /// Masters that were tried since a primary was lost, and itself.
    failed: BTreeSet<SocketAddr>,
    /// Connection to it. (Its node may disappear from the list before that.)
    conn: Option<ConnId>,
    /// Whether there is no connection to the primary, and why.
    lost: Option<Loss>,
    /// Whether the next list of nodes is the full one.
    pub wants_full_list: bool,
}

/// Why there is no connection to the primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loss {
    /// Another master is known to be primary.
    Elected,
    /// The connection was lost or could not be opened.
    Failure,
}

impl Secondary {
    /// Begins to follow the primary. Its connection is kept if it was opened from here and the
    /// primary accepted it; all others are closed.
    pub fn start(cluster: &mut Cluster, io: &mut Io<'_, Master>, primary: NodeKey) -> Self {
        log::info!("play the secondary role");
        cluster.primary_since = None;
        let kept = cluster
            .nm
            .get(primary)
            .and_then(Node::identified)
            .filter(|conn| !io.is_accepted(*conn) && !io.is_pending(*conn));
        disconnect_all(cluster, io, kept);
        let lost = match kept {
            Some(conn) => {
                io.set_handler(conn, &PrimaryHandler);
                None
            }
            None => Some(Loss::Elected),
        };
        let failed = BTreeSet::from([cluster.options.bind]);
        Self { primary, failed, conn: kept, lost, wants_full_list: true }
    }

    /// The master that is, or may be, primary.
    pub const fn primary(&self) -> NodeKey {
        self.primary
    }

    /// Another master is primary.
    pub fn elected(&mut self, cluster: &mut Cluster, io: &mut Io<'_, Master>, primary: NodeKey) {
        if primary == self.primary {
            return;
        }
        if let Some(conn) = self.conn.take() {
            cluster.nm.unlink(conn);
            io.close(conn);
        }
        self.primary = primary;
        self.lost = Some(Loss::Elected);
    }

    /// A connection is lost: perhaps that to the primary.
    pub fn lost(&mut self, conn: ConnId) {
        if self.conn == Some(conn) {
            log::info!("primary master lost");
            self.conn = None;
            self.lost = Some(Loss::Failure);
        }
    }

    /// Connects to who may be primary, or gives up.
    pub fn advance(
        &mut self,
        cluster: &mut Cluster,
        io: &mut Io<'_, Master>,
    ) -> Option<Transition> {
        let lost = self.lost.take()?;
        if lost == Loss::Failure {
            if cluster.nm.get(self.primary).is_some_and(Node::is_running) {
                self.failed = BTreeSet::from([cluster.options.bind]);
            } else {
                let mut others = cluster.nm.masters().filter(|node| {
                    node.address().is_some_and(|address| !self.failed.contains(&address))
                });
                match others.next() {
                    Some(node) => self.primary = node.key(),
                    None => return Some(Transition::PlayPrimary),
                }
            }
        }
        for key in cluster.nm.masters().map(Node::key).collect::<Vec<_>>() {
            cluster.nm.set_state(key, NodeState::Down);
        }
        let Some(address) = cluster.nm.get(self.primary).and_then(Node::address) else {
            self.lost = Some(Loss::Failure);
            return self.advance(cluster, io);
        };
        self.failed.insert(address);
        let conn = io.connect(address, &PrimaryHandler);
        self.conn = Some(conn);
        let replaced = cluster.nm.set_link(self.primary, Link::Connecting(conn));
        if let Ok(Some(replaced)) = replaced {
            io.close(replaced);
        }
        cluster.nm.reset();
        self.wants_full_list = true;
        None
    }
}
