//! The index as the pool uses it: rows by key, over the overlay and redb.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{ReadOnlyTable, ReadableDatabase, TableDefinition};
use thiserror::Error;
use tracing_mutex::parkinglot::RwLock;

use super::overlay::{Overlay, Rows};
use super::pages::{Backend, PageStore};
use super::sums::SumsTable;
use crate::backing::FileName;
use crate::format::{
    Algorithm, BLOCK_U64, Change, CheckpointBegin, CheckpointDone, CheckpointRef, FormatError, Key,
    Lsn, PoolTag, SUMS_PER_BLOCK, SumEntry,
};
use crate::mirrors::{Copied, MirrorError, MirrorSet, Target};

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Why a row could not be read, or a checkpoint not be made.
#[derive(Debug, Clone, Error)]
pub enum IndexError {
    /// The database could not read or make sense of a page.
    #[error("index: {0}")]
    Database(String),
    /// A row does not decode.
    #[error("index row: {0}")]
    Row(#[from] FormatError),
    /// The page-sum table is lost on every mirror, or is not the one of the last checkpoint.
    #[error("the page-sum table is damaged on every mirror ({0})")]
    Sums(String),
    /// The mirrors could not take the pages.
    #[error(transparent)]
    Mirrors(#[from] MirrorError),
}

fn database(error: impl Into<redb::Error>) -> IndexError {
    IndexError::Database(error.into().to_string())
}

/// A checkpoint that the last life of the pool did not finish, as the journal tells.
#[derive(Debug, Default)]
pub struct Interrupted {
    /// It began: page 0 must be put back, and the listed pages are undefined.
    pub begun: Option<CheckpointBegin>,
    /// It was done: its sums must be put in.
    pub done: Option<CheckpointDone>,
}

/// All rows.
pub struct Index {
    overlay: RwLock<Overlay>,
    /// The rows as of the last checkpoint, for reading.
    table: RwLock<Table>,
    database: redb::Database,
    store: Arc<PageStore>,
    /// Rows and ranges asked for.
    lookups: AtomicU64,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// How to open the index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexConfig {
    pub(crate) algorithm: Algorithm,
    pub(crate) pool: PoolTag,
    /// Cache of redb, in bytes.
    pub(crate) cache: usize,
    /// Space kept reserved for the next checkpoint, in bytes.
    pub(crate) reserve: u64,
}

impl Index {
    /// Opens the index as `checkpoint` left it, after undoing or finishing the one that came after.
    /// Returns the checkpoint that the index now stands at.
    pub(crate) fn open(
        mirrors: Arc<MirrorSet>,
        config: IndexConfig,
        checkpoint: CheckpointRef,
        interrupted: Interrupted,
    ) -> Result<(Index, CheckpointRef), IndexError> {
        let pages = checkpoint.index_len.div_ceil(BLOCK_U64);
        let blocks = pages.div_ceil(SUMS_PER_BLOCK as u64) as usize;
        let (algorithm, pool) = (config.algorithm, config.pool);
        let mut sums = SumsTable::load(&mirrors, algorithm, pool, checkpoint.generation, blocks)
            .map_err(|lost| IndexError::Sums(format!("block {}", lost.block)))?;
        if checkpoint.generation > 0 && sums.root() != checkpoint.sums_root {
            return Err(IndexError::Sums(
                "its root does not match the superblock".to_owned(),
            ));
        }
        let mut now = checkpoint;
        let mut undone = BTreeSet::new();
        if let Some(done) = interrupted.done {
            done.sums
                .iter()
                .for_each(|(page, entry)| sums.set(*page, *entry));
            sums.resize(done.index_len.div_ceil(BLOCK_U64) as usize);
            if sums.root() != done.sums_root {
                return Err(IndexError::Sums(
                    "its root does not match the journal".to_owned(),
                ));
            }
            sums.store(&mirrors, done.generation)?;
            now = CheckpointRef {
                generation: done.generation,
                lsn: done.lsn,
                index_len: done.index_len,
                sums_root: done.sums_root,
            };
        } else if let Some(begun) = interrupted.begun {
            if !begun.page_zero.is_empty() {
                mirrors.write(FileName::Index, 0, &[&begun.page_zero])?;
                mirrors.sync(&[FileName::Index], &[])?;
            }
            begun
                .pages
                .iter()
                .for_each(|page| sums.set(*page, SumEntry::UNDEFINED));
            undone.extend(begun.pages);
        }
        let len = now.index_len;
        let store = PageStore::new(mirrors, algorithm, config.reserve, sums, len, undone);
        Ok((Index::open_database(Arc::new(store), config.cache)?, now))
    }

    fn open_database(store: Arc<PageStore>, cache: usize) -> Result<Index, IndexError> {
        let mut builder = redb::Builder::new();
        let backend = Backend(Arc::clone(&store));
        let database = builder
            .set_cache_size(cache)
            .create_with_backend(backend)
            .map_err(self::database)?;
        if store.pages() == 0 {
            let transaction = database.begin_write().map_err(self::database)?;
            transaction.open_table(ROWS).map_err(self::database)?;
            transaction.commit().map_err(self::database)?;
        }
        let table = RwLock::new(open_table(&database)?);
        Ok(Index {
            overlay: RwLock::default(),
            table,
            database,
            store,
            lookups: AtomicU64::new(0),
        })
    }

    /// The row's value, if there is one.
    ///
    /// # Errors
    /// [`IndexError::Database`] if a page is damaged on every mirror.
    pub fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, IndexError> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        if let Some(changed) = self.overlay.read().get(key) {
            return Ok(changed.cloned());
        }
        // A checkpoint that ends right here has put the row into the table before it left the
        // overlay, so it is found in one of the two.
        let found = self.table.read().get(key.as_bytes()).map_err(database)?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// Up to `limit` rows from `from` (inclusive) to `to` (exclusive), ascending.
    ///
    /// # Errors
    /// As [`Index::get`]; [`IndexError::Row`] if the database holds an impossible key.
    pub fn scan(
        &self,
        from: &Key,
        to: &Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, IndexError> {
        self.collect(from, to, limit, false)
    }

    /// Up to `limit` rows from `from` (inclusive) to `to` (exclusive), descending from `to`.
    ///
    /// # Errors
    /// As [`Index::scan`].
    pub fn scan_back(
        &self,
        from: &Key,
        to: &Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, IndexError> {
        self.collect(from, to, limit, true)
    }

    /// As [`Index::scan`], but the rows as of the last checkpoint.
    ///
    /// # Errors
    /// As [`Index::scan`].
    pub fn scan_checkpointed(
        &self,
        from: &Key,
        to: &Key,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<u8>)>, IndexError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let table = self.table.read();
        let bounds = (
            Bound::Included(from.as_bytes()),
            Bound::Excluded(to.as_bytes()),
        );
        let rows = table.range::<&[u8]>(bounds).map_err(database)?;
        rows.take(limit)
            .map(|row| {
                let (key, value) = row.map_err(database)?;
                Ok((Key::from_bytes(key.value())?, value.value().to_vec()))
            })
            .collect()
    }

    fn collect(
        &self,
        from: &Key,
        to: &Key,
        limit: usize,
        back: bool,
    ) -> Result<Vec<(Key, Vec<u8>)>, IndexError> {
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        self.lookups.fetch_add(1, Ordering::Relaxed);
        // The overlay stays locked so that its rows and the table's are of one moment.
        let overlay = self.overlay.read();
        let table = self.table.read();
        let bounds = (
            Bound::Included(from.as_bytes()),
            Bound::Excluded(to.as_bytes()),
        );
        let stored = table.range::<&[u8]>(bounds).map_err(database)?;
        let stored = stored.into_iter();
        let mut stored: Box<dyn Iterator<Item = _>> = if back {
            Box::new(stored.rev())
        } else {
            Box::new(stored)
        };
        let mut stored = std::iter::from_fn(|| {
            stored.next().map(|row| {
                let (key, value) = row.map_err(database)?;
                Ok::<_, IndexError>((Key::from_bytes(key.value())?, value.value().to_vec()))
            })
        })
        .peekable();
        let mut changed = changed_rows(&overlay, from, to, back).peekable();
        let mut rows = Vec::new();
        while rows.len() < limit {
            // Rows of the overlay come first and hide those of the table with the same key.
            let take_changed = match (changed.peek(), stored.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) | (Some(_), Some(Err(_))) => false,
                (Some((key, _)), Some(Ok((other, _)))) => {
                    if *key == other {
                        stored.next();
                        true
                    } else {
                        (*key < other) != back
                    }
                }
            };
            if take_changed {
                if let Some((key, Some(value))) = changed.next() {
                    rows.push((key.clone(), value.clone()));
                }
            } else if let Some(row) = stored.next() {
                rows.push(row?);
            }
        }
        Ok(rows)
    }

    /// How often rows were asked for, and how many pages were read from a mirror for that.
    pub fn reads(&self) -> (u64, u64) {
        (self.lookups.load(Ordering::Relaxed), self.store.reads())
    }

    /// Makes changes visible. The caller has put them into the journal in the same order.
    pub fn apply(&self, changes: Vec<Change>) {
        self.overlay.write().apply(changes);
    }

    /// Rows changed since the last freeze, and roughly the bytes they take.
    pub fn overlay_size(&self) -> (usize, usize) {
        self.overlay.read().size()
    }

    /// Step 1 of a checkpoint: the changed rows are set aside for it.
    pub fn freeze(&self) {
        self.overlay.write().freeze();
    }

    /// Step 2: commits the frozen rows and `extra` ones to the database; its pages stay in memory.
    ///
    /// # Errors
    /// [`IndexError::Database`]; the index can then no longer be used.
    pub fn prepare(&self, generation: u64, extra: Rows) -> Result<CheckpointBegin, IndexError> {
        let frozen = self.overlay.read().frozen.clone().unwrap_or_default();
        let mut transaction = self.database.begin_write().map_err(database)?;
        // Without it opening after a crash reads the whole index.
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(ROWS).map_err(database)?;
            for (key, value) in frozen.iter().chain(&extra) {
                match value {
                    Some(value) => {
                        table
                            .insert(key.as_bytes(), value.as_slice())
                            .map_err(database)?;
                    }
                    None => {
                        table.remove(key.as_bytes()).map_err(database)?;
                    }
                }
            }
        }
        transaction.commit().map_err(database)?;
        self.store
            .begin_record(generation)
            .map_err(|error: io::Error| IndexError::Database(error.to_string()))
    }

    /// Step 4: writes the pages to their places and syncs them.
    ///
    /// # Errors
    /// [`IndexError::Mirrors`]; may be tried again.
    pub fn write_pages(&self) -> Result<(), IndexError> {
        Ok(self.store.write_pages()?)
    }

    /// Step 5: the record that makes the checkpoint count.
    pub fn done_record(&self, generation: u64, lsn: Lsn, tail: u64) -> CheckpointDone {
        self.store.done_record(generation, lsn, tail)
    }

    /// Step 6: puts the page sums on disk and lets go of the frozen rows.
    ///
    /// # Errors
    /// [`IndexError::Mirrors`]; may be tried again.
    pub fn publish(&self, generation: u64) -> Result<(), IndexError> {
        self.store.publish(generation)?;
        *self.table.write() = open_table(&self.database)?;
        self.overlay.write().thaw();
        Ok(())
    }

    /// Extends the space reserved for the next checkpoint; false if a mirror has no room for it.
    ///
    /// # Errors
    /// [`IndexError::Mirrors`].
    pub fn extend_reserve(&self) -> Result<bool, IndexError> {
        Ok(self.store.extend_reserve()?)
    }

    /// Forgets what is reserved: a mirror came that has nothing reserved.
    pub fn forget_reserve(&self) {
        self.store.forget_reserve();
    }

    /// Makes pages `from..to` of the mirror that is being brought up to date what they are on the
    /// others.
    ///
    /// # Errors
    /// [`crate::mirrors::MirrorError::Target`] if that mirror failed.
    pub fn copy_pages(&self, from: u32, to: u32, target: &Target) -> Result<Copied, IndexError> {
        Ok(self.store.copy(from, to, target)?)
    }

    /// Makes the page-sum table of the mirror that is being brought up to date, and the lengths of
    /// both files, what they are on the others. No checkpoint may be under way.
    ///
    /// # Errors
    /// As [`Index::copy_pages`].
    pub fn copy_sums(&self, target: &Target) -> Result<Copied, IndexError> {
        Ok(self.store.copy_sums(target)?)
    }

    /// Pages of the index on disk.
    pub fn pages(&self) -> u32 {
        self.store.pages()
    }

    /// Checks index pages `from..to` on the medium of every mirror and repairs bad copies. Returns
    /// the number of bad copies and the pages that no mirror has.
    pub fn verify_pages(&self, from: u32, to: u32) -> (usize, Vec<u32>) {
        self.store.verify(from, to)
    }

    /// Checks the page-sum table on every mirror and repairs it; returns the number of bad copies.
    pub fn verify_sums(&self) -> usize {
        self.store.verify_sums()
    }
}

fn open_table(database: &redb::Database) -> Result<Table, IndexError> {
    let transaction = database.begin_read().map_err(self::database)?;
    transaction.open_table(ROWS).map_err(self::database)
}

type Changed<'a> = (&'a Key, &'a Option<Vec<u8>>);

/// The changed rows in a range, in order, the active ones hiding the frozen.
fn changed_rows<'a>(
    overlay: &'a Overlay,
    from: &Key,
    to: &Key,
    back: bool,
) -> impl Iterator<Item = Changed<'a>> + 'a {
    let range = (Bound::Included(from.clone()), Bound::Excluded(to.clone()));
    let ordered = |rows: &'a Rows| -> Box<dyn Iterator<Item = Changed<'a>> + 'a> {
        let rows = rows.range(range.clone());
        if back {
            Box::new(rows.rev())
        } else {
            Box::new(rows)
        }
    };
    let mut active = ordered(&overlay.active).peekable();
    let mut frozen = overlay
        .frozen
        .as_deref()
        .map(ordered)
        .into_iter()
        .flatten()
        .peekable();
    std::iter::from_fn(move || match (active.peek(), frozen.peek()) {
        (None, _) => frozen.next(),
        (Some(_), None) => active.next(),
        (Some((key, _)), Some((other, _))) => {
            if key == other {
                frozen.next();
                active.next()
            } else if (key < other) != back {
                active.next()
            } else {
                frozen.next()
            }
        }
    })
}
