// A minimal bot for Node.js: searches the user's memories before each reply, and remembers both sides.
//
//     npm install
//     REDIS_URL=redis://127.0.0.1:18379/0 node bot.mjs anna
//
// It reads the messages of one user from standard input, a line each.

import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import { Memory } from "./memory.mjs";

// Your bot calls its model here, with the message and the memories in the prompt.
function replyTo(message, memories) {
  return memories.length ? `I remember: ${memories[0].content}` : `Tell me more about “${message}”`;
}

const user = process.argv[2];
const session = `session-${randomUUID().slice(0, 8)}`;
const memory = await Memory.connect(process.env.REDIS_URL ?? "redis://127.0.0.1:18379/0");

async function remember(content, source) {
  try {
    await memory.remember(user, content, { source, session });
  } catch (error) {
    console.error(`not remembered: ${error.message}`); // the bot goes on
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = line.trim();
  if (!message) continue;
  const reply = replyTo(message, await memory.search(user, message, { limit: 3 }));
  console.log(reply);
  await remember(message, "user");
  await remember(reply, "ai");
}
memory.close();
