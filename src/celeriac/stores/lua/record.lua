-- What the scripts of the store share: where everything is, and a record in memory.
--
-- Keys, all of them behind the prefix, ARGV[1] (Celery's global_keyprefix):
--   celery-task-meta-<id>    string  Celery's own result; a stock worker may write it at any time. A PENDING task has none.
--   celeriac:task:<id>       hash    the record, but for what Celery's result has: result and traceback
--   celeriac:events:<id>     list    JSON texts; an event's id is its position, the first is 1
--   celeriac:index           zset    id -> number: newer records have greater numbers
--   celeriac:index:state:<state>, celeriac:index:name:<name>, celeriac:index:queue:<queue>, celeriac:index:owner:<owner>
--   celeriac:finished        zset    id -> when it ended, in epoch seconds
--   celeriac:cancelled       zset    id -> when it was marked or revoked, in epoch seconds of the server
--   celeriac:numbers         hash    last: the newest number; lead: by how much a number is ahead of its enqueued_at at most
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
local FINISHED = PREFIX .. 'celeriac:finished'
local CANCELLED = PREFIX .. 'celeriac:cancelled'
local FORGOTTEN = PREFIX .. 'celeriac:forgotten'
local NUMBERS = PREFIX .. 'celeriac:numbers'

-- Fields of the hash. Times are microseconds since the epoch.
local FIELDS = {
  'state', 'name', 'queue', 'args', 'kwargs', 'owner', 'root_id', 'parent_id', 'group_id', 'enqueued_at', 'eta',
  'expires', 'started_at', 'finished_at', 'retries', 'worker', 'children', 'attempts', 'open',
  'cancel_requested_at', 'number', 'stock', 'progress',
}
local STATE, NAME, QUEUE, ARGS, KWARGS, OWNER, ROOT, PARENT, GROUP = 1, 2, 3, 4, 5, 6, 7, 8, 9
local ENQUEUED, ETA, EXPIRES, STARTED, FINISH, RETRIES, WORKER, CHILDREN = 10, 11, 12, 13, 14, 15, 16, 17
-- ATTEMPTS: a line of JSON for each; OPEN: of the last line, the length of the text up to its end, while it may change.
-- STOCK: the SHA-1 of what a stock worker wrote, when the record has taken it in.
local ATTEMPTS, OPEN, CANCEL, NUMBER, STOCK, PROGRESS = 18, 19, 20, 21, 22, 23

local READY = { SUCCESS = true, FAILURE = true, REVOKED = true }

-- How Celery's result begins when we have written it. Celery's own code begins with the status.
local OURS = '{"task_id": '

local call = redis.call

local ESCAPES = { ['"'] = '\\"', ['\\'] = '\\\\', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t' }
local quoted = {}

local function escape(character)
  return ESCAPES[character] or string.format('\\u%04x', string.byte(character))
end

-- A text as JSON.
local function quote(text)
  if not text then
    return 'null'
  end
  local found = quoted[text]
  if not found then
    found = '"' .. string.gsub(text, '[%c"\\]', escape) .. '"'
    quoted[text] = found
  end
  return found
end

-- The record of a task: its fields by position, false where there is nothing.
local function load(id)
  local row = call('HMGET', TASK .. id, unpack(FIELDS))
  row.id = id
  row.known = row[STATE]
  row.old_state, row.old_name, row.old_queue, row.old_owner = row[STATE], row[NAME], row[QUEUE], row[OWNER]
  row.old_finish = row[FINISH]
  return row
end

local function set(row, field, value)
  row[field] = value
  local changed = row.changed
  if not changed then
    changed = {}
    row.changed = changed
  end
  changed[field] = true
end

-- Forget what is known of a task, whose record begins anew.
local function blank(row)
  for field = 1, #FIELDS do
    row[field] = false
  end
  row.known, row.changed, row.blanked = false, nil, true
end

-- What Celery's result says that a task's state is; a text that is not JSON shows a SUCCESS at least.
local function status_of(text)
  local status = string.match(text, '^{"status": "([^"]*)"') or string.match(text, '^{"task_id": ".-", "status": "([^"]*)"')
  if status then
    return status
  end
  return string.find(text, 'SUCCESS', 1, true) and 'SUCCESS' or 'UNKNOWN'
end

-- Take into account what stock workers have written since: the state as they know it, or that they have deleted it.
local function look(row)
  if row.looked then
    return
  end
  row.looked = true
  local text = call('GETRANGE', META .. row.id, 0, 255)
  if text == '' then
    if READY[row[STATE]] then
      blank(row)
    end
  elseif not row.known or string.sub(text, 1, #OURS) ~= OURS then
    row.written = status_of(text)
  end
end

-- The state that counts.
local function current(row)
  return row.written or row[STATE]
end
