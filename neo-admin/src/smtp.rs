// SPDX-License-Identifier: GPL-2.0-or-later
//! Hands an e-mail over to a mail server (RFC 5321, and RFC 4954 for AUTH). It blocks.
//!
//! A recipient that is refused does not prevent the others from getting the e-mail. Encryption
//! (STARTTLS) is not available yet: then nothing is sent, above all no password.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::mail::{Mail, MailConfig};

/// How long the server may take for anything.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that the server may say in all.
const REPLIES_BYTES_MAX: u64 = 64 << 10;

/// Sends an e-mail.
///
/// # Errors
/// Why it could not be sent, to any of its recipients.
pub fn send(mail: &Mail) -> io::Result<()> {
    let MailConfig { smtp, starttls, .. } = &mail.config;
    if *starttls {
        return Err(Error::new(ErrorKind::Unsupported, "--smtp-tls is not available yet"));
    }
    let stream = TcpStream::connect_timeout(&smtp.resolve()?, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let replies = BufReader::new(stream.try_clone()?.take(REPLIES_BYTES_MAX));
    Session { replies, commands: stream }.deliver(mail)
}

struct Session<R, W> {
    replies: R,
    commands: W,
}

impl<R: BufRead, W: Write> Session<R, W> {
    fn deliver(&mut self, mail: &Mail) -> io::Result<()> {
        let MailConfig { recipients, sender, host, auth, .. } = &mail.config;
        self.reply(b'2')?;
        let extensions = match self.command(&format!("EHLO {}", word(host)?), b'2') {
            Ok(extensions) => extensions,
            Err(_) => self.command(&format!("HELO {}", word(host)?), b'2')?,
        };
        if let Some(auth) = auth {
            self.authenticate(&extensions, &auth.user, auth.password.reveal())?;
        }
        self.command(&format!("MAIL FROM:<{}>", word(sender)?), b'2')?;
        let mut refused = None;
        let mut accepted_count = 0;
        for recipient in recipients {
            match self.command(&format!("RCPT TO:<{}>", word(recipient)?), b'2') {
                Ok(_) => accepted_count += 1,
                Err(error) => {
                    log::warn!("recipient {recipient} refused: {error}");
                    refused = Some(error);
                }
            }
        }
        if let (0, Some(error)) = (accepted_count, refused) {
            return Err(error);
        }
        self.command("DATA", b'3')?;
        self.commands.write_all(body(&mail.message).as_bytes())?;
        self.reply(b'2')?;
        // It has the message: how it says good-bye does not matter.
        let _ = self.command("QUIT", b'2');
        Ok(())
    }

    fn authenticate(&mut self, extensions: &str, user: &str, password: &str) -> io::Result<()> {
        let methods = extensions.lines().find_map(|line| line.strip_prefix("AUTH "));
        let methods: Vec<&str> = methods.unwrap_or_default().split(' ').collect();
        if methods.contains(&"PLAIN") {
            let secret = base64(format!("\0{user}\0{password}").as_bytes());
            self.command(&format!("AUTH PLAIN {secret}"), b'2')?;
        } else if methods.contains(&"LOGIN") {
            self.command(&format!("AUTH LOGIN {}", base64(user.as_bytes())), b'3')?;
            self.command(&base64(password.as_bytes()), b'2')?;
        } else {
            let message = "the mail server offers no known way to authenticate";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(())
    }

    fn command(&mut self, command: &str, expected: u8) -> io::Result<String> {
        // In one piece: it is a packet, and nothing is buffered.
        self.commands.write_all(format!("{command}\r\n").as_bytes())?;
        self.reply(expected)
    }

    /// The texts of a reply that may have several lines, if its code begins with `expected`.
    fn reply(&mut self, expected: u8) -> io::Result<String> {
        let mut texts = String::new();
        loop {
            let mut line = Vec::new();
            self.replies.read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            let text = line.get(4..).unwrap_or_default();
            texts.push_str(text);
            if line.as_bytes().get(3) != Some(&b'-') {
                let is_expected = line.as_bytes().first() == Some(&expected);
                return if is_expected { Ok(texts) } else { Err(Error::other(line)) };
            }
            texts.push('\n');
        }
    }
}

/// An address or name that cannot be anything else than a part of one command.
fn word(text: &str) -> io::Result<&str> {
    let is_special = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>');
    if text.is_empty() || text.contains(is_special) {
        return Err(Error::new(ErrorKind::InvalidInput, format!("invalid address {text:?}")));
    }
    Ok(text)
}

/// With the line ends of mail, dots doubled, and the final dot.
fn body(message: &str) -> String {
    let mut body = String::with_capacity(message.len() + 64);
    for line in message.lines() {
        if line.starts_with('.') {
            body.push('.');
        }
        body.push_str(line);
        body.push_str("\r\n");
    }
    body.push_str(".\r\n");
    body
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { digit.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use neo_common::config::admin::SmtpAuth;
    use neo_common::config::{Address, Secret};

    fn mail(auth: bool) -> Mail {
        let config = MailConfig {
            recipients: vec!["a@example.com".into(), "b@example.com".into()],
            sender: "neo@example.com".into(),
            host: "me".into(),
            smtp: Address { host: "localhost".into(), port: 25 },
            starttls: false,
            auth: auth.then(|| SmtpAuth { user: "user".into(), password: Secret::new("pass") }),
        };
        Mail { config, message: "Subject: x\n\n.dot\ntext\n".into() }
    }
    fn talk(replies: &str, mail: &Mail) -> (io::Result<()>, String) {
        let mut session = Session { replies: replies.as_bytes(), commands: Vec::new() };
        let result = session.deliver(mail);
        (result, String::from_utf8(session.commands).unwrap())
    }

    /// The whole dialogue, with a recipient that is refused.
    #[test]
    fn delivery() {
        let replies = "220 hello\r\n250-server\r\n250 8BITMIME\r\n250 ok\r\n550 unknown\r\n250 ok\r\n\
                       354 go\r\n250 queued\r\n221 bye\r\n";
        let (result, commands) = talk(replies, &mail(false));
        result.unwrap();
        assert_eq!(
            commands,
            "EHLO me\r\nMAIL FROM:<neo@example.com>\r\nRCPT TO:<a@example.com>\r\n\
             RCPT TO:<b@example.com>\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\ntext\r\n.\r\nQUIT\r\n"
        );
    }

    /// The first method that both know; an old server is greeted the old way.
    #[test]
    fn authentication() {
        let rest = "235 in\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n";
        let plain = format!("220 x\r\n250-s\r\n250 AUTH LOGIN PLAIN\r\n{rest}");
        let (result, commands) = talk(&plain, &mail(true));
        result.unwrap();
        assert!(commands.contains("\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n"), "{commands}");
        let login = format!("220 x\r\n250-s\r\n250 AUTH LOGIN\r\n334 x\r\n{rest}");
        let (result, commands) = talk(&login, &mail(true));
        result.unwrap();
        assert!(commands.contains("\r\nAUTH LOGIN dXNlcg==\r\ncGFzcw==\r\n"), "{commands}");
        let (result, commands) = talk("220 x\r\n500 what\r\n250 s\r\n", &mail(true));
        assert!(result.unwrap_err().to_string().contains("no known way"));
        assert_eq!(commands, "EHLO me\r\nHELO me\r\n");
    }

    /// All that a server may do wrong is an error with its words.
    #[test]
    fn failures() {
        for (replies, message) in [
            ("", "unexpected end of file"),
            ("220", "unexpected end of file"),
            ("\r\n", ""),
            ("554 no\r\n", "554 no"),
            ("220 x\r\n250 s\r\n451 later\r\n", "451 later"),
            ("220 x\r\n250 s\r\n250 ok\r\n550 a\r\n550 b\r\n", "550 b"),
            ("220 x\r\n250 s\r\n250 ok\r\n250 a\r\n250 b\r\n354 go\r\n552 big\r\n", "552 big"),
        ] {
            let error = talk(replies, &mail(false)).0.unwrap_err();
            assert_eq!(error.to_string(), message, "{replies:?}");
        }
        let mut evil = mail(false);
        evil.config.recipients = vec!["a@b>\r\nDATA".into()];
        assert!(talk("220 x\r\n250 s\r\n250 ok\r\n", &evil).0.is_err());
        assert!(
            send(&{
                let mut mail = mail(true);
                mail.config.starttls = true;
                mail
            })
            .is_err()
        );
    }

    #[test]
    fn base64_padding() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (text, encoded) in cases {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
