// Bulk jobs: what works on all events that match a filter, and what became of the last ones.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { repeat } from "../../vendor/lit-html/directives/repeat.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { duration, number, said, state, visible, when } from "../format.js";
import { may } from "../page.js";

const load = (_, signal) => api.jobs(signal);

const isUnderWay = (job) => job.state === "running" || job.state === "counting";

function render({ jobs }, { query }) {
  const shown = jobs.filter((job) => !job.dry_run).reverse();
  return html`
    <div class="head"><h1 class="grow">Bulk jobs</h1></div>
    <section class="card">
      ${shown.length ? html`<div class="scroll"><table>
        <thead><tr><th scope="col">Job</th><th scope="col">What</th><th scope="col">Filter</th><th scope="col">State</th><th scope="col">Progress</th><th scope="col">Results</th><th scope="col">By</th><th scope="col">Started</th><th scope="col">Took</th><th scope="col"><span class="hidden-text">Actions</span></th></tr></thead>
        <tbody>${repeat(shown, (job) => job.id, (job) => row(job, query.job === String(job.id)))}</tbody></table></div>`
      : html`<div class="empty"><p>No jobs since the daemon's start. Begin one in <a href="#/dead-letters">Dead letters</a> or <a href="#/events">Events</a>, with “All that match”.</p></div>`}
      <div class="foot"><span>The daemon keeps the last 50 jobs in memory. A restart forgets a job, and not what it did.</span></div>
    </section>`;
}

function row(job, isMeant) {
  const { matched, limit, done } = job;
  const goal = limit === null || matched === null ? matched : Math.min(limit, matched);
  const took = (Date.parse(job.ended_at ?? "") || Date.now()) - Date.parse(job.started_at);
  return html`<tr class=${isMeant ? "chosen" : ""}>
    <th scope="row" class="mono">${job.id}</th><td>${job.action}</td><td>${actions.filterWords(job.filter)}${job.rate ? html`<div class="muted">at most ${said(job.rate)}</div>` : nothing}</td>
    <td>${state(job.state)}${job.message ? html`<div class=${job.state === "failed" || job.state === "refused" ? "bad" : "muted"}>${said(job.message)}</div>` : nothing}</td>
    <td class="t">${number(done)} of ${goal === null ? "…" : number(goal)}<progress max=${goal || 1} value=${goal === null ? nothing : done} aria-label="Progress of job ${job.id}"></progress></td>
    <td>${actions.tally(job.results)}</td><td>${visible(job.by)}</td><td class="t">${when(job.started_at)}</td><td class="t">${duration(took / 1_000)}</td>
    <td class="n">${isUnderWay(job) && may("operate") ? html`<button class="danger" @click=${() => actions.stopJob(job)}>Stop<span class="hidden-text"> job ${job.id}</span> …</button>` : nothing}</td></tr>`;
}

export default { title: () => "Bulk jobs", every: (data) => (data?.jobs.some(isUnderWay) ? 1_000 : 5_000), load, render };
