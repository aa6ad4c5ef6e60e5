// SPDX-License-Identifier: GPL-2.0-or-later
//! The node that carries a dialog to an admin. It does not identify itself.
//!
//! There is nobody to retry for: a connection that fails or is lost is the end. What is to be
//! printed is the only job, because a core prints nothing.

use std::convert::Infallible;
use std::net::SocketAddr;

use neo_common::config::Exit;
use neo_common::engine::{
    App, CallId, ConnId, EXIT_BY_SIGNAL, Fault, Handled, Handler, Io, Lost, Signal,
};
use neo_common::protocol::{ErrorCode, MsgId, Packet};

use crate::commands::Command;
use crate::dialog::{Dialog, Step, error};

/// neoctl, executing one command.
#[derive(Debug)]
pub struct Ctl {
    admin: SocketAddr,
    dialog: Dialog,
    /// What to do once connected.
    first: Option<Step>,
}

impl Ctl {
    /// Asks the admin that listens there.
    pub fn new(admin: SocketAddr, command: Command) -> Self {
        let (dialog, first) = Dialog::start(command);
        Self { admin, dialog, first: Some(first) }
    }

    /// Prints in JSON, if it is a `print` command.
    pub fn in_json(self) -> Self {
        Self { dialog: self.dialog.in_json(), ..self }
    }

    fn step(&mut self, io: &mut Io<'_, Self>, conn: ConnId, step: Step) {
        match step {
            // If the connection is gone, its loss tells.
            Step::Ask(packet) => drop(io.ask(conn, packet, ())),
            // Ending at once could reset the connection, and what was sent would be lost: a barrier
            // tells that it was received.
            Step::Send(packet) => {
                io.send(conn, packet);
                io.ask(conn, Packet::Ping {}, ());
            }
            Step::End(exit) => {
                io.close(conn);
                self.end(io, exit);
            }
        }
    }

    fn end(&mut self, io: &mut Io<'_, Self>, exit: Exit) {
        if !io.is_exiting() {
            let status = i32::from(exit.status);
            io.submit(exit, ());
            io.exit(status);
        }
    }
}

impl App for Ctl {
    type Job = Exit;
    type Done = Infallible;
    type After = ();
    type Ticket = ();
    type Call = Infallible;
    type Reply = Infallible;
    type Timer = ();
    type Transition = Infallible;

    fn acceptor(&self) -> &'static dyn Handler<Self> {
        &AdminHandler
    }
    fn start(&mut self, io: &mut Io<'_, Self>) {
        io.connect(self.admin, &AdminHandler);
    }
    fn job_done(&mut self, _: &mut Io<'_, Self>, (): (), done: Infallible) {
        match done {}
    }
    fn call(&mut self, _: &mut Io<'_, Self>, _: CallId, call: Infallible) {
        match call {}
    }
    fn timer(&mut self, _: &mut Io<'_, Self>, (): ()) {}
    fn signal(&mut self, io: &mut Io<'_, Self>, signal: Signal) {
        if signal == Signal::Terminate {
            io.exit(EXIT_BY_SIGNAL);
        }
    }
    fn transition(&mut self, _: &mut Io<'_, Self>, transition: Infallible) {
        match transition {}
    }
    fn advance(&mut self, _: &mut Io<'_, Self>) {}
    fn label(&self) -> String {
        "neoctl".into()
    }
}

/// What an admin answers. Upstream: neoctl/handler.py.
struct AdminHandler;

impl Handler<Ctl> for AdminHandler {
    fn name(&self) -> &'static str {
        "AdminHandler"
    }

    fn packet(&self, _: &mut Ctl, _: &mut Io<'_, Ctl>, _: ConnId, _: MsgId, _: Packet) -> Handled {
        Err(Fault::Unexpected)
    }

    fn completed(&self, app: &mut Ctl, io: &mut Io<'_, Ctl>, conn: ConnId) {
        // The answer may be bigger than what strangers are allowed.
        io.trust(conn);
        if let Some(step) = app.first.take() {
            app.step(io, conn, step);
        }
    }

    fn answer(
        &self,
        app: &mut Ctl,
        io: &mut Io<'_, Ctl>,
        conn: ConnId,
        (): (),
        packet: Packet,
    ) -> Handled {
        let step = app.dialog.answer(packet);
        app.step(io, conn, step);
        Ok(())
    }

    /// Also without ticket: some errors of upstream's admin do not have the id of the request.
    fn error(
        &self,
        app: &mut Ctl,
        io: &mut Io<'_, Ctl>,
        conn: ConnId,
        _: Option<()>,
        code: ErrorCode,
        message: String,
    ) -> Handled {
        let step = app.dialog.answer(Packet::Error { code, message });
        app.step(io, conn, step);
        Ok(())
    }

    fn lost(&self, app: &mut Ctl, io: &mut Io<'_, Ctl>, _: ConnId, why: Lost, _: Vec<()>) {
        let text = match why {
            Lost::Failed => "not connected",
            Lost::ByPeer | Lost::ByUs => "Connection closed",
        };
        app.end(io, error(text));
    }
}
