// Draws /openapi.json. Text is only ever set as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// One line per field, nested ones indented; a message that contains itself is named once.
function outline(schema, components, depth = 0, seen = []) {
  const pad = "  ".repeat(depth);
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    if (seen.includes(name)) return `${name} (see above)`;
    return outline(components[name], components, depth, [...seen, name]);
  }
  if (schema.oneOf) return schema.oneOf.map((one) => outline(one, components, depth, seen)).join(" or ");
  if (schema.type === "array") return `[ ${outline(schema.items || {}, components, depth, seen)}, … ]`;
  if (schema.properties) {
    const lines = Object.entries(schema.properties).map(([name, inner]) => {
      const mark = (schema.required || []).includes(name) ? "" : "?";
      const note = inner.description ? `   // ${inner.description}` : "";
      return `${pad}  ${name}${mark}: ${outline(inner, components, depth + 1, seen)}${note}`;
    });
    return `{\n${lines.join("\n")}\n${pad}}`;
  }
  if (schema.additionalProperties) return `{ key: ${outline(schema.additionalProperties, components, depth, seen)} }`;
  if (schema.enum && schema.enum.length < 20) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  return [].concat(schema.type || "any").join(" or ");
}

function example(method, path, operation) {
  const parts = ["curl"];
  if (method !== "get") parts.push(`-X ${method.toUpperCase()}`);
  if (!operation.security) parts.push("-H \"Authorization: Bearer $PENSTOCK_TOKEN\"");
  const content = operation.requestBody && operation.requestBody.content;
  if (content && content["application/json"]) {
    const body = sample(content["application/json"].schema);
    parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(body)}'`);
  } else if (content) {
    parts.push("--data-binary @file");
  }
  parts.push(`'${location.origin}${path}'`);
  return parts.join(" \\\n  ");
}

function sample(schema) {
  const made = {};
  for (const name of schema.required || []) {
    const inner = schema.properties[name];
    if (name === "inputs") made[name] = [{ name: "x", shape: [1, 2], datatype: "FP32", data: [0.5, 1] }];
    else if (inner.type === "string") made[name] = "…";
    else if (inner.type === "integer") made[name] = 1;
    else made[name] = {};
  }
  return made;
}

function parameterTable(parameters) {
  const rows = parameters.map((one) => element("tr", {},
    element("td", {}, element("code", {}, one.name)), element("td", {}, one.in),
    element("td", {}, one.required ? "required" : "optional"), element("td", {}, one.description)));
  return element("table", {}, element("tbody", {}, ...rows));
}

function body(title, content, components) {
  const parts = [element("h4", {}, title)];
  for (const [kind, media] of Object.entries(content)) {
    parts.push(element("p", {}, element("code", {}, kind)));
    if (kind === "application/json") parts.push(element("pre", {}, outline(media.schema, components)));
  }
  return parts;
}

function route(method, path, operation, components) {
  const shown = element("details", { "data-text": `${method} ${path} ${operation.summary}`.toLowerCase() },
    element("summary", {}, element("span", { class: "method" }, method.toUpperCase()),
      element("code", {}, path), element("span", {}, operation.summary)));
  shown.addEventListener("toggle", () => {
    if (!shown.open || shown.childElementCount > 1) return;
    if (operation.parameters.length) shown.append(element("h4", {}, "Parameters"), parameterTable(operation.parameters));
    if (operation.requestBody) shown.append(...body("Request", operation.requestBody.content, components));
    for (const [status, answer] of Object.entries(operation.responses)) {
      const title = status === "default" ? "Any error" : `Answer ${status}`;
      shown.append(...body(title, answer.content || {}, components));
    }
    shown.append(element("h4", {}, "Example"), element("pre", {}, example(method, path, operation)));
  });
  return shown;
}

function draw(description) {
  at("about").textContent = `${description.info.version}. ${description.info.description}`;
  const sections = new Map(description.tags.map((tag) => [tag.name, element("section", { id: tag.name },
    element("h2", {}, tag.name))]));
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      sections.get(operation.tags[0]).append(route(method, path, operation, description.components.schemas));
    }
  }
  at("tags").replaceChildren(...[...sections.keys()].map((name) => element("a", { href: `#${name}` }, name)));
  at("routes").replaceChildren(...sections.values());
}

async function load(token) {
  at("trouble").textContent = "";
  const answer = await fetch("/openapi.json", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
  at("access").hidden = answer.status !== 401;
  if (answer.status === 401) {
    if (token) at("trouble").textContent = "That token is not known here.";
    return;
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  draw(await answer.json());
}

function show(token) {
  load(token).catch((error) => { at("trouble").textContent = `The description could not be read: ${error.message}`; });
}

at("access").addEventListener("submit", (event) => { event.preventDefault(); show(at("token").value); });
at("filter").addEventListener("input", () => {
  const wanted = at("filter").value.trim().toLowerCase();
  for (const one of document.querySelectorAll("details")) one.hidden = !one.dataset.text.includes(wanted);
});
show("");
