//! The work cut into tasks that processes can share.

use serde_json::{Value as Json, json};
use tersor::llm::{Behind, shard_windows};

use super::{Action, Plan};

/// A piece of the work. What it writes does not depend on who does the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// A matrix, by the number of its entry.
    Matrix(usize),
    /// All sites of a layer, behind the compressed ones before it.
    Layer(usize),
    /// Statistics of a shard of the windows, in the original network.
    Statistics(usize),
    /// Principal directions of the original network, which it is rotated into.
    Directions,
}

impl Plan {
    /// Shards that the statistics of the original network are gathered in.
    pub fn shards(&self) -> usize {
        self.windows[0].div_ceil(shard_windows(self.windows[1]))
    }

    /// The tasks in an order in which they can be done.
    pub fn tasks(&self) -> Vec<Task> {
        let compressed = |i: &usize| matches!(self.entries[*i].action, Action::Compress(_));
        let matrices = || (0..self.entries.len()).filter(compressed);
        let needs_data = |i: &usize| self.entries[*i].needs().any_data();
        let chain = self.needs_walk() && matches!(self.behind(), Ok(Behind::Compressed));
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
        if self.needs_walk() && self.statistics.is_none() {
            tasks.extend((0..self.shards()).map(Task::Statistics));
        }
        tasks.extend(matrices().map(Task::Matrix));
        tasks
    }

    /// The tasks as a list shows them, each with the numbers of those that must be done before it.
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
