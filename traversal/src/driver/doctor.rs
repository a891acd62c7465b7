//! Finding out behind what kind of NAT the node is.

use std::{net::SocketAddr, time::Duration};

use tokio::sync::oneshot;
use traversal_proto::{
    SocketId, Time,
    path::{Discovery, SocketRequest, discovery},
};

use super::Driver;
use crate::{DoctorError, DoctorOptions, Report};

/// The tests but that of the lifetime are over by then, whatever is lost.
const QUICK: Duration = Duration::from_secs(30);

pub(super) struct Examination {
    discovery: Discovery,
    reply: Option<oneshot::Sender<Result<Report, DoctorError>>>,
    until: Time,
    sockets: Vec<SocketId>,
}

impl Driver {
    pub(super) fn examine(
        &mut self,
        options: DoctorOptions,
        reply: oneshot::Sender<Result<Report, DoctorError>>,
        now: Time,
    ) {
        let reflectors = self.homes.iter().find_map(|home| home.hello());
        let refusal = match reflectors {
            None => Some(DoctorError::NoSupernode),
            Some(_) if self.doctor.is_some() => Some(DoctorError::Busy),
            Some(_) => None,
        };
        if let Some(error) = refusal {
            // Who asked may have given up.
            let _ = reply.send(Err(error));
            return;
        }
        let reflectors = reflectors.map(|hello| hello.reflectors.to_vec()).unwrap_or_default();
        let config = discovery::Config { reflectors, quick: false, lifetime: options.lifetime };
        let discovery = Discovery::new(config, self.seeds.take(), now);
        let until = now + QUICK + options.lifetime.saturating_mul(2);
        self.doctor = Some(Examination { discovery, reply: Some(reply), until, sockets: Vec::new() });
    }

    /// True: it was an answer to the examination.
    pub(super) fn doctor_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        now: Time,
    ) -> bool {
        let Some(doctor) = &mut self.doctor else { return false };
        doctor.sockets.contains(&socket) && doctor.discovery.handle_datagram(socket, from, datagram, now)
    }

    /// Moves what the examination has to say. True: there was something.
    pub(super) fn drain_doctor(&mut self, now: Time) -> bool {
        let mut moved = false;
        while let Some(request) = self.doctor.as_mut().and_then(|doctor| doctor.discovery.poll_socket()) {
            moved = true;
            self.doctor_socket(request, now);
        }
        while let Some(transmit) = self.doctor.as_mut().and_then(|doctor| doctor.discovery.poll_transmit()) {
            moved = true;
            self.send(&transmit);
        }
        let over = self.doctor.as_ref().is_some_and(|doctor| {
            doctor.discovery.report().is_some() || doctor.until <= now || doctor.is_forgotten()
        });
        if over && let Some(mut doctor) = self.doctor.take() {
            for socket in doctor.sockets.drain(..) {
                self.sockets.remove(socket);
            }
            let nothing = discovery::Report { no_answer: true, ..discovery::Report::default() };
            let found = doctor.discovery.report().unwrap_or(&nothing);
            let report = Report::new(self.sockets.local(super::MAIN), self.statuses.borrow().clone(), found);
            if let Some(reply) = doctor.reply.take() {
                // Who asked may have given up.
                let _ = reply.send(Ok(report));
            }
        }
        moved
    }

    fn doctor_socket(&mut self, request: SocketRequest, now: Time) {
        match request {
            SocketRequest::Open { request, .. } => {
                let socket = self.open_socket();
                let local = socket.map(|socket| self.sockets.local(socket));
                let Some(doctor) = &mut self.doctor else { return };
                match (socket, local) {
                    (Some(socket), Some(local)) => {
                        doctor.sockets.push(socket);
                        doctor.discovery.handle_socket_opened(request, socket, local, now);
                    }
                    _ => doctor.discovery.handle_socket_refused(request, now),
                }
            }
            SocketRequest::Close(socket) => {
                self.sockets.remove(socket);
                if let Some(doctor) = &mut self.doctor {
                    doctor.sockets.retain(|open| *open != socket);
                }
            }
        }
    }

    pub(super) fn doctor_due(&mut self, now: Time) {
        if let Some(doctor) = &mut self.doctor
            && doctor.discovery.poll_timeout().is_some_and(|at| at <= now)
        {
            doctor.discovery.handle_timeout(now);
        }
    }

    pub(super) fn doctor_next(&self) -> Option<Time> {
        let doctor = self.doctor.as_ref()?;
        Some(doctor.discovery.poll_timeout().map_or(doctor.until, |at| at.min(doctor.until)))
    }
}

impl Examination {
    /// Nobody waits for the result any more.
    fn is_forgotten(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}
