//! Joining, and the streams of members.

use polygram_domain::control::{MemberId, Reason, Role, RunState};
use polygram_domain::{Generation, SCHEMA_VERSION};
use polygram_proto::control::JoinRequest;

use super::Turn;
use crate::core::event::{Action, Level, Reply, Ticket};
use crate::core::membership::Stream;

impl Turn<'_> {
    pub(in crate::core) fn join(&mut self, ticket: Ticket, request: JoinRequest) {
        let answer = self.admit(request);
        if let Err(refusal) | Ok(Reply::Later(refusal)) = &answer {
            self.log(Level::Warn, format!("refused a member: {refusal}"));
        }
        self.reply(ticket, answer);
    }

    fn admit(&mut self, request: JoinRequest) -> Result<Reply, String> {
        let (who, version) = (request.member, request.schema_version);
        if version != SCHEMA_VERSION {
            return Err(format!(
                "{who} speaks schema version {version}, the run speaks version {SCHEMA_VERSION}; use the same build \
                 everywhere"
            ));
        }
        if self.state.is_over() {
            return Err(format!("the run is over: {}", self.state.message()));
        }
        let (count, key) = match who.role {
            Role::Worker => (self.state.settings.topology.workers, "workers"),
            Role::Shard => (self.state.settings.topology.shards, "shards"),
        };
        if who.index >= count {
            return Err(format!("{who} is out of range: topology.{key} is {count}, counted from 0"));
        }
        let generation = self.state.generation();
        if let Some(holder) = self.state.membership.get(who) {
            if holder.incarnation == request.incarnation && holder.stream != Stream::Ended {
                // The first answer was lost on its way.
                let member = holder.id;
                self.state.membership.heard(who, self.now);
                return Ok(Reply::Admitted { member, generation });
            }
            let heard = self.now.since(holder.heard) as f64 / 1000.0;
            let taken =
                format!("{who} is taken by pid {} on {}, heard {heard:.1} s ago", holder.pid, holder.host);
            // Where runs recover, another process in the slot is most often the successor of a dead one.
            return if self.state.budget.allows_restarts() { Ok(Reply::Later(taken)) } else { Err(taken) };
        }
        if let Some(refusal) = self.state.budget.admit_host(&request.host, self.now) {
            return Ok(Reply::Later(refusal));
        }
        let JoinRequest { pid, host, data_address, .. } = &request;
        self.log(Level::Info, format!("{who} joined (pid {pid} on {host}, data at {data_address})"));
        let member = self.state.membership.admit(request, self.now);
        if self.state.run_state() == RunState::Recovering {
            // Whoever starts members again sees who is back.
            self.actions.push(Action::StatusChanged);
        }
        Ok(Reply::Admitted { member, generation })
    }

    pub(in crate::core) fn attend(&mut self, ticket: Ticket, member: MemberId, generation: Generation) {
        let answer = self.open_stream(member, generation);
        self.reply(ticket, answer);
    }

    fn open_stream(&mut self, member: MemberId, generation: Generation) -> Result<Reply, String> {
        let active = self.state.generation();
        if self.state.is_over() {
            return Err(format!("the run is over: {}", self.state.message()));
        }
        if generation != active {
            return Ok(Reply::Later(format!(
                "admission {} is of generation {generation}, the active one is {active}; join again",
                member.0
            )));
        }
        let Some(m) = self.state.membership.by_id(member) else {
            return Err(format!("admission {} is not of this generation; join first", member.0));
        };
        match m.stream {
            Stream::Expected => {
                self.state.membership.open_stream(member, self.now);
                Ok(Reply::Attending)
            }
            Stream::Open => Err(format!("{} attends already", m.who)),
            Stream::Ended => Err(format!("the stream of {} has ended", m.who)),
        }
    }

    pub(in crate::core) fn stream_ended(&mut self, member: MemberId, message: String) {
        let Some(m) = self.state.membership.end_stream(member) else { return };
        let (who, is_excused) = (m.who, m.finished.is_some() || m.failed);
        if self.state.is_over() {
            self.log(Level::Info, format!("{who} left"));
        } else if !is_excused {
            self.member_fails(who, Reason::MemberLost, message);
        }
    }
}
