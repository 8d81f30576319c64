-- What the scripts of the store share: where everything is, and a record in memory.
--
-- Keys, all of them behind the prefix, ARGV[1] (Celery's global_keyprefix):
--   celery-task-meta-<id>    string  Celery's own result; a stock worker may write it at any time. A PENDING task has none.
--   celeriac:task:<id>       string  the record, a MessagePack array of texts; result and traceback are in Celery's result
--   celeriac:events:<id>     list    JSON texts; an event's id is its position, the first is 1. Few events stay in the record.
--   celeriac:index           zset    id -> number: newer records have greater numbers
--   celeriac:index:state:<state>, celeriac:index:name:<name>, celeriac:index:queue:<queue>, celeriac:index:owner:<owner>
--                            sets    ids
--   celeriac:cancelled       zset    id -> when it was marked or revoked, in epoch seconds of the server; below zero, without
--                                    a record any more: until when that is remembered
--   celeriac:expired:<id>    string  of a task whose record has expired, a MessagePack array: its owner, and when it expired
--   celeriac:key:<key>       string  of an idempotency key, a MessagePack array: its task, the fingerprint, and since when
--   celeriac:numbers         hash    last: the newest number; lead: by how much a number is ahead of its enqueued_at at most;
--                                    trimmed, looked: how far the clean-ups have come
-- Channels:
--   celery-task-meta-<id>    Celery's result, whenever somebody writes it
--   celeriac:events:<id>     the kind of whatever else happens to the task
--   celeriac:cancelled, celeriac:forgotten    ids
--
-- Values of users are JSON texts and stay as they are: they are put together, and never decoded.

local PREFIX = ARGV[1]
local META = PREFIX .. 'celery-task-meta-'
local TASK = PREFIX .. 'celeriac:task:'
local EVENTS = PREFIX .. 'celeriac:events:'
local INDEX = PREFIX .. 'celeriac:index'
local CANCELLED = PREFIX .. 'celeriac:cancelled'
local FORGOTTEN = PREFIX .. 'celeriac:forgotten'
local EXPIRED = PREFIX .. 'celeriac:expired:'
local KEY = PREFIX .. 'celeriac:key:'
local NUMBERS = PREFIX .. 'celeriac:numbers'

-- Places in the array; '' where there is nothing. Times are microseconds since the epoch.
local STATE, NAME, QUEUE, ARGS, KWARGS, OWNER, ROOT, PARENT, GROUP = 1, 2, 3, 4, 5, 6, 7, 8, 9
local ENQUEUED, ETA, EXPIRES, STARTED, FINISHED, RETRIES, WORKER, CHILDREN = 10, 11, 12, 13, 14, 15, 16, 17
-- ATTEMPTS: a line of JSON for each; OPEN: of the last line, the length of the text up to its end, while it may change.
-- STOCK: the SHA-1 of what a stock worker wrote, when the record has taken it in.
-- LOG: the first events, a line of JSON for each; LISTED: '1' when events are in their list instead.
local ATTEMPTS, OPEN, CANCEL, NUMBER, STOCK, PROGRESS, LOG, LISTED = 18, 19, 20, 21, 22, 23, 24, 25

local READY = { SUCCESS = true, FAILURE = true, REVOKED = true }

-- How Celery's result begins when we have written it. Celery's own code begins with the status.
local OURS = '{"task_id": '

local call = redis.call
local pack, unpacked = cmsgpack.pack, cmsgpack.unpack
local find, sub = string.find, string.sub

local ESCAPES = { ['"'] = '\\"', ['\\'] = '\\\\', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t' }
local quoted = { [''] = 'null' }

local function escape(character)
  return ESCAPES[character] or string.format('\\u%04x', string.byte(character))
end

-- A text as JSON.
local function quote(text)
  local done = quoted[text]
  if not done then
    if find(text, '[%c"\\]') then
      done = '"' .. string.gsub(text, '[%c"\\]', escape) .. '"'
    else
      done = '"' .. text .. '"'
    end
    quoted[text] = done
  end
  return done
end

local function blank()
  return { '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '' }
end

local function load(id)
  local text = call('GET', TASK .. id)
  return text and unpacked(text)
end
