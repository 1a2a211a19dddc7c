//! Passwords of the shared outbox's database that AWS makes.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::aws::rds::Tokens;
use crate::outbox::postgres::Passwords;

impl Passwords for Tokens {
    fn password<'a>(&'a self, host: &'a str, port: u16, user: &'a str) -> BoxFuture<'a, Result<String, String>> {
        self.token(host, port, user).boxed()
    }
}
