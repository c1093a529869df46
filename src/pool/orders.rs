//! The operator's orders to the mirror set, as they come through the mount: queued by whoever
//! writes the attribute, carried out by the service that looks after the mirrors, between two steps
//! of its own work, and answered in a list that is read back.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tracing_mutex::parkinglot::Mutex;

use super::commit::Pool;
use super::error::PoolError;
use super::members::MemberError;

/// Answers that are kept.
const ANSWERS: usize = 64;
/// Orders that may wait.
const WAITING: usize = 64;

/// What to do with a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberAction {
    /// Make an empty directory a mirror.
    Add,
    /// Take a mirror off the pool for good.
    Remove,
    /// Take a mirror out until it is taken back.
    Offline,
    /// Take a mirror back.
    Online,
    /// Fill an empty directory, which then takes the place of a mirror.
    Replace,
}

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOrder {
    /// Chosen by whoever gives the order; its answer has the same.
    pub id: String,
    /// What to do.
    pub action: MemberAction,
    /// With which mirror: its directory or UUID.
    pub mirror: String,
    /// The new directory, to replace a mirror.
    #[serde(default)]
    pub new: Option<String>,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAnswer {
    /// That of the order.
    pub id: String,
    /// Why it was not carried out; none if it was.
    pub error: Option<String>,
}

/// Orders that wait, and the last answers.
#[derive(Debug, Default)]
pub(super) struct Orders {
    waiting: Mutex<VecDeque<MemberOrder>>,
    answers: Mutex<VecDeque<MemberAnswer>>,
}

impl Orders {
    fn answer(&self, id: String, error: Option<String>) {
        let mut answers = self.answers.lock();
        if answers.len() == ANSWERS {
            answers.pop_front();
        }
        answers.push_back(MemberAnswer { id, error });
    }
}

impl Pool {
    /// Takes an order, to be carried out soon; false if too many wait.
    pub fn order(&self, order: MemberOrder) -> bool {
        if self.read_only() {
            let error = PoolError::ReadOnly.to_string();
            self.orders.answer(order.id, Some(error));
            return true;
        }
        let mut waiting = self.orders.waiting.lock();
        let room = waiting.len() < WAITING;
        if room {
            waiting.push_back(order);
        }
        room
    }

    /// The last answers, oldest first.
    pub fn answers(&self) -> Vec<MemberAnswer> {
        self.orders.answers.lock().iter().cloned().collect()
    }

    /// Carries out the orders that wait; returns how many that were.
    pub fn carry_out_orders(&self) -> usize {
        let orders = std::mem::take(&mut *self.orders.waiting.lock());
        let count = orders.len();
        for order in orders {
            let outcome = self.carry_out(&order);
            if let Err(error) = &outcome {
                log::warn!("{:?} {}: {error}", order.action, order.mirror);
            }
            let error = outcome.err().map(|error| error.to_string());
            self.orders.answer(order.id, error);
        }
        count
    }

    fn carry_out(&self, order: &MemberOrder) -> Result<(), MemberError> {
        let mirror = order.mirror.as_str();
        match (order.action, order.new.as_deref()) {
            (MemberAction::Add, _) => self.mirror_add(mirror, None),
            (MemberAction::Remove, _) => self.mirror_remove(mirror),
            (MemberAction::Offline, _) => self.mirror_offline(mirror),
            (MemberAction::Online, _) => self.mirror_online(mirror),
            (MemberAction::Replace, Some(new)) => self.mirror_add(new, Some(mirror)),
            (MemberAction::Replace, None) => Err(MemberError::NotMember(String::new())),
        }
    }
}
