// OpenAI's own client for Node: chat loops, streams, structured outputs, tools and errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "developer", content: "" }, { role: "user", content: "the film was" }];
const first = await client.chat.completions.create({ model: "bon", messages, max_completion_tokens: 9, store: false });
const said = first.choices[0].message;
assert.ok(said.content);
const again = await client.chat.completions.create({
  model: "bon", messages: [...messages, said, { role: "user", content: "more" }], max_tokens: 9, n: 2,
});
assert.equal(again.choices.length, 2);

let text = "";
const stream = client.chat.completions.stream({ model: "ref", messages, max_tokens: 9, stream_options: { include_usage: true } });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);

const schema = {
  type: "object",
  properties: { mood: { enum: ["good", "bad"] }, stars: { type: "integer" } },
  required: ["mood", "stars"],
  additionalProperties: false,
};
const typed = await client.chat.completions.parse({
  model: "bon", messages, max_tokens: 300,
  response_format: { type: "json_schema", json_schema: { name: "review", schema, strict: true } },
});
assert.ok(["good", "bad"].includes(JSON.parse(typed.choices[0].message.content).mood));

const tools = [{ type: "function", function: { name: "review", parameters: schema } }];
const called = await client.chat.completions.create({
  model: "bon", messages, tools, tool_choice: { type: "function", function: { name: "review" } }, max_tokens: 300,
});
const [call] = called.choices[0].message.tool_calls;
assert.ok(Number.isInteger(JSON.parse(call.function.arguments).stars));
const answered = await client.chat.completions.create({
  model: "bon", messages: [...messages, called.choices[0].message, { role: "tool", tool_call_id: call.id, content: "kept" }], max_tokens: 9,
});
assert.ok(answered.choices[0].message.content);

await assert.rejects(
  client.chat.completions.create({ model: "bon", messages: [{ role: "user", content: "x".repeat(5000) }] }),
  (error) => error instanceof OpenAI.BadRequestError && error.code === "context_length_exceeded",
);
const wrong = new OpenAI({ baseURL: process.argv[2].replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
await assert.rejects(wrong.chat.completions.create({ model: "bon", messages }), /base_url/);
