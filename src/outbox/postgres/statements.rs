//! Plain SQL on a connection of its own, for commands and demonstrations.

use super::Server;
use super::live::Scripts;

/// A connection to a database.
pub struct Sql(Scripts);

impl Sql {
    pub async fn open(server: &Server) -> Result<Self, String> {
        Scripts::open(server).await.map(Self).map_err(|trouble| trouble.to_string())
    }

    /// Runs statements, separated by semicolons. Returns the rows of all of them, as text.
    pub async fn ask(&self, statements: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        self.0.ask(statements).await.map_err(|trouble| trouble.to_string())
    }
}
