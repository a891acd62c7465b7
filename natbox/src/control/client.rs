//! The control socket's side of those who ask: `natbox show` and programs in Rust.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::{
    line::{Done, Happened, Line},
    place::{self, PlaceError},
    request::{Request, VERSION},
};

/// natbox answers within a turn of its loop; it is wedged when a line takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a running natbox.
#[derive(Debug)]
pub struct Client {
    lines: BufReader<UnixStream>,
}

/// A request that was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// natbox refused; its words.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("natbox hung up: {0}")]
    Broken(#[from] io::Error),
    /// The answer is not one that this version knows.
    #[error("natbox answered in words that this version does not know: {0}")]
    Unknown(serde_json::Error),
}

impl Client {
    /// Connects to the natbox at `wanted` (a path, or a process id), or to the only one that runs here.
    pub fn connect(wanted: Option<&Path>) -> Result<Client, PlaceError> {
        let stream = place::connect(wanted)?;
        let refused = |error| PlaceError::NotThere {
            path: wanted.unwrap_or(Path::new("its socket")).to_owned(),
            error,
        };
        stream.set_read_timeout(Some(PATIENCE)).map_err(refused)?;
        Ok(Client { lines: BufReader::new(stream) })
    }

    /// Makes a request and hands every line of the answer but the last to `each`.
    pub fn request(&mut self, request: &Request, mut each: impl FnMut(Line)) -> Result<Done, ClientError> {
        if let Err(broken) = self.send(request) {
            // natbox may have said why before it hung up.
            return match self.line() {
                Ok(Line::Error { message }) => Err(ClientError::Refused(message)),
                _ => Err(broken),
            };
        }
        loop {
            match self.line()? {
                Line::Done(done) => return Ok(done),
                Line::Error { message } => return Err(ClientError::Refused(message)),
                line => each(line),
            }
        }
    }

    /// Hands every event to `each` until that says `false` or natbox stops.
    pub fn events(
        &mut self,
        blocks: bool,
        mut each: impl FnMut(Happened) -> bool,
    ) -> Result<(), ClientError> {
        self.request(&Request::Events { blocks }, |_| ())?;
        // Between two events any time may pass.
        self.lines.get_ref().set_read_timeout(None)?;
        loop {
            let go_on = match self.line()? {
                Line::Event(event) => each(event),
                Line::Error { message } => return Err(ClientError::Refused(message)),
                _ => true,
            };
            if !go_on {
                return Ok(());
            }
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let mut value = serde_json::to_value(request).map_err(ClientError::Unknown)?;
        value["natbox"] = VERSION.into();
        let mut text = value.to_string();
        text.push('\n');
        Ok(self.lines.get_mut().write_all(text.as_bytes())?)
    }

    fn line(&mut self) -> Result<Line, ClientError> {
        let mut text = String::new();
        if self.lines.read_line(&mut text)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        serde_json::from_str(&text).map_err(ClientError::Unknown)
    }
}
