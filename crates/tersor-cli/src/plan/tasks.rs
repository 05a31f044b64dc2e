//! Tasks: parts of the work that several processes can share.

use serde_json::{Value as Json, json};
use tersor::llm::{Upstream, shard_windows};

use super::{Action, Plan};

/// A part of the work. Its output does not depend on which process does which task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Compress one matrix, given by the index of its entry.
    Matrix(usize),
    /// Compress all sites of a layer, with the compressed layers upstream.
    Layer(usize),
    /// Gather the statistics of one shard of windows in the original network.
    Statistics(usize),
    /// Find the principal directions of the original network, into which it is rotated.
    Directions,
}

impl Plan {
    /// Returns the number of shards of the statistics of the original network.
    pub fn shards(&self) -> usize {
        self.windows[0].div_ceil(shard_windows(self.windows[1]))
    }

    /// Returns the tasks in an order in which they can be done.
    pub fn tasks(&self) -> Vec<Task> {
        let compressed = |i: &usize| matches!(self.entries[*i].action, Action::Compress(_));
        let matrices = || (0..self.entries.len()).filter(compressed);
        let needs_data = |i: &usize| self.entries[*i].needs().any_data();
        let chain = self.needs_site_data() && matches!(self.upstream(), Ok(Upstream::Compressed));
        let mut tasks = Vec::new();
        if self.rotation_needs_data() {
            tasks.push(Task::Directions);
        }
        if chain && let Some(network) = &self.network {
            let sites = network.sites();
            let fed = |i: &usize| {
                let here = |s: &&tersor::core::Site| s.layer.is_some();
                sites.iter().filter(here).any(|s| s.consumers.iter().any(|c| c.weight == self.entries[*i].name))
            };
            tasks.extend(matrices().filter(|i| !fed(i) && !needs_data(i)).map(Task::Matrix));
            tasks.extend((0..network.layers()).map(Task::Layer));
            tasks.extend(matrices().filter(|i| !fed(i) && needs_data(i)).map(Task::Matrix));
            return tasks;
        }
        if self.needs_site_data() && self.statistics.is_none() {
            tasks.extend((0..self.shards()).map(Task::Statistics));
        }
        tasks.extend(matrices().map(Task::Matrix));
        tasks
    }

    /// Returns the tasks as JSON, each with the indices of the tasks that must be done before it (`after`).
    pub(super) fn tasks_json(&self) -> Vec<Json> {
        let tasks = self.tasks();
        let number = |task: Task| tasks.iter().position(|t| *t == task);
        let tables = self.network.as_ref().map(|n| n.embeddings()).unwrap_or_default();
        let statistics: Vec<usize> = (0..tasks.len()).filter(|i| matches!(tasks[*i], Task::Statistics(_))).collect();
        let last_layer = tasks.iter().rposition(|t| matches!(t, Task::Layer(_)));
        let json = |(i, task): (usize, &Task)| match *task {
            Task::Matrix(e) => {
                let entry = &self.entries[e];
                let after = match (entry.needs().any_data(), last_layer) {
                    (false, _) => number(Task::Directions).into_iter().collect(),
                    (true, Some(last)) => vec![last],
                    (true, None) => statistics.clone(),
                };
                json!({"task": i, "kind": "matrix", "tensor": entry.name, "after": after})
            }
            Task::Layer(0) => {
                let table = |name: &String| number(Task::Matrix(self.entry(name)?));
                let after: Vec<usize> =
                    number(Task::Directions).into_iter().chain(tables.iter().filter_map(table)).collect();
                json!({"task": i, "kind": "layer", "layer": 0, "after": after})
            }
            Task::Layer(l) => json!({"task": i, "kind": "layer", "layer": l, "after": [i - 1]}),
            Task::Directions => json!({"task": i, "kind": "directions", "after": []}),
            Task::Statistics(s) => {
                json!({"task": i, "kind": "statistics", "shard": format!("{}/{}", s + 1, self.shards()), "after": []})
            }
        };
        tasks.iter().enumerate().map(json).collect()
    }
}
