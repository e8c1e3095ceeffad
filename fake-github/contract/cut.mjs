// Cuts GitHub's OpenAPI description and webhook examples down to what flyci uses. Called by fetch.sh with the directory.
import fs from 'node:fs';
import path from 'node:path';

const dir = process.argv[2];
const read = (name) => JSON.parse(fs.readFileSync(path.join(dir, 'node_modules/@octokit', name)));
const write = (name, value) => fs.writeFileSync(path.join(dir, name), JSON.stringify(value));

const repo = '/repos/{owner}/{repo}';
const org = '/orgs/{org}';
const calls = {
  '/app': ['get'],
  '/app/installations': ['get'],
  '/app/installations/{installation_id}': ['get'],
  '/app/installations/{installation_id}/access_tokens': ['post'],
  '/app/hook/config': ['get'],
  '/app/hook/deliveries': ['get'],
  [`${repo}/releases`]: ['get'],
  '/app/hook/deliveries/{delivery_id}': ['get'],
  '/app/hook/deliveries/{delivery_id}/attempts': ['post'],
  '/installation/repositories': ['get'],
  '/meta': ['get'],
  '/rate_limit': ['get'],
  [repo]: ['get'],
  [`${repo}/installation`]: ['get'],
  [`${org}/installation`]: ['get'],
  '/users/{username}/installation': ['get'],
  [`${repo}/actions/runners`]: ['get'],
  [`${repo}/actions/runners/generate-jitconfig`]: ['post'],
  [`${repo}/actions/runners/{runner_id}`]: ['get', 'delete'],
  [`${org}/actions/runners`]: ['get'],
  [`${org}/actions/runners/generate-jitconfig`]: ['post'],
  [`${org}/actions/runners/{runner_id}`]: ['get', 'delete'],
  [`${org}/actions/runner-groups`]: ['get', 'post'],
  [`${org}/actions/runner-groups/{runner_group_id}`]: ['get'],
  [`${org}/actions/runner-groups/{runner_group_id}/repositories`]: ['get'],
  [`${repo}/actions/runs`]: ['get'],
  [`${repo}/actions/runs/{run_id}`]: ['get'],
  [`${repo}/actions/runs/{run_id}/jobs`]: ['get'],
  [`${repo}/actions/runs/{run_id}/cancel`]: ['post'],
  [`${repo}/actions/runs/{run_id}/rerun`]: ['post'],
  [`${repo}/actions/runs/{run_id}/rerun-failed-jobs`]: ['post'],
  [`${repo}/actions/jobs/{job_id}`]: ['get'],
  [`${repo}/actions/jobs/{job_id}/rerun`]: ['post'],
};
const events = [
  'workflow-job-queued', 'workflow-job-waiting', 'workflow-job-in-progress', 'workflow-job-completed',
  'installation-created', 'installation-deleted', 'installation-suspend', 'installation-unsuspend',
  'installation-new-permissions-accepted', 'installation-repositories-added', 'installation-repositories-removed',
  'installation-target-renamed', 'repository-renamed', 'repository-publicized', 'repository-privatized',
  'repository-transferred', 'repository-deleted', 'ping',
];

const openapi = read('openapi/generated/api.github.com.json');
const components = openapi.components;

// Everything that a value refers to, as component kind and name.
function reach(value, found = new Set()) {
  if (Array.isArray(value)) value.forEach((v) => reach(v, found));
  else if (value && typeof value === 'object') {
    const ref = typeof value.$ref === 'string' && value.$ref.match(/^#\/components\/([^/]+)\/(.+)$/);
    if (ref && !found.has(`${ref[1]}/${ref[2]}`)) {
      found.add(`${ref[1]}/${ref[2]}`);
      reach(components[ref[1]][ref[2]], found);
    }
    Object.values(value).forEach((v) => reach(v, found));
  }
  return found;
}

function pick(found) {
  const picked = {};
  for (const key of found) {
    const [kind, name] = key.split('/');
    (picked[kind] ??= {})[name] = components[kind][name];
  }
  return picked;
}

const paths = {};
for (const [route, methods] of Object.entries(calls)) {
  const whole = openapi.paths[route];
  if (!whole) throw new Error(`GitHub's description has no ${route}`);
  paths[route] = Object.fromEntries(Object.entries(whole).filter(([k]) => k === 'parameters' || methods.includes(k)));
}

// GitHub's description has no security scheme; with one, Prism refuses calls without a bearer. The runner's
// releases are asked for without.
paths[`${repo}/releases`].get.security = [];
write('openapi.json', {
  openapi: openapi.openapi,
  info: openapi.info,
  servers: openapi.servers,
  security: [{ bearer: [] }],
  paths,
  components: { ...pick(reach(paths)), securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } } },
});

// OpenAPI 3.0 to JSON Schema: `nullable` becomes a type, references move, annotations go.
function toSchema(value) {
  if (Array.isArray(value)) return value.map(toSchema);
  if (!value || typeof value !== 'object') return value;
  if (typeof value.$ref === 'string') return { $ref: value.$ref.replace('#/components/schemas/', '#/definitions/') };
  const out = {};
  for (const [key, inner] of Object.entries(value)) {
    if (['example', 'examples', 'nullable', 'discriminator', 'deprecated', 'description', 'title'].includes(key)
      && !(inner && typeof inner === 'object' && (inner.type || inner.$ref || inner.allOf || inner.anyOf || inner.oneOf))) continue;
    out[key] = toSchema(inner);
  }
  if (value.nullable === true) {
    if (Array.isArray(out.enum) && !out.enum.includes(null)) out.enum.push(null);
    return { anyOf: [out, { type: 'null' }] };
  }
  return out;
}

const resolve = (v) => (v.$ref ? components[v.$ref.split('/')[2]][v.$ref.split('/')[3]] : v);
const answers = {};
for (const [route, methods] of Object.entries(calls)) {
  for (const method of methods) {
    for (const [status, answer] of Object.entries(paths[route][method].responses)) {
      const schema = resolve(answer).content?.['application/json']?.schema;
      if (schema) answers[`${method.toUpperCase()} ${route} ${status}`] = schema;
    }
  }
}
// The list asks for an account that is user and enterprise at once, which no account is.
answers['GET /app/installations 200'] = { type: 'array', items: { $ref: '#/components/schemas/installation' } };
const webhooks = {};
for (const event of events) {
  const name = `webhook-${event}`;
  if (!components.schemas[name]) throw new Error(`GitHub's description has no ${name}`);
  webhooks[event] = { $ref: `#/components/schemas/${name}` };
}
const used = pick(reach([answers, webhooks])).schemas;
write('schemas.json', toSchema({ answers, webhooks, definitions: used }));

const examples = read('webhooks-examples/api.github.com/index.json');
write('examples.json', Object.fromEntries(
  examples.map((e) => [e.name, e.examples]),
));
