-- Ends deliveries in any way, and publishes what comes of those that were not void.
--
-- ARGV  4... for each: tag, action ('gone', 'back', 'dead'), due or '', '1' if the delivery counts, reason as JSON,
--       number of publications, and for each of those: queue, step, due or '', envelope
-- Returns the tags that were void.

-- A list that is no list must stop all of this before anything has happened.
local i = 4
while i <= #ARGV do
  local publications = tonumber(ARGV[i + 5])
  i = i + 6
  for _ = 1, publications do
    call('LLEN', list_of(ARGV[i], ARGV[i + 1]))
    i = i + 4
  end
end

local function bury(tag, reason, text, queue)
  local id = call('INCR', PREFIX .. 'celeriac:dead-sequence')
  local name = string.sub(cjson.encode({ queue }), 2, -2)
  local letter = table.concat({ text_of(time()), step_of(tag), name, reason, text }, '\n')
  call('HSET', PREFIX .. 'celeriac:dead', id, letter)
  call('ZADD', PREFIX .. 'celeriac:dead-order', id, id)
  call('ZADD', PREFIX .. 'celeriac:dead:' .. queue, id, id)
end

-- Puts a message back. If its list has become none, it stays until its lease ends, and is tried again then.
local function put_back(tag, text, queue, due)
  if due ~= '' then
    release({ tag })
    delay(queue, step_of(tag), due, text)
  elseif pcall(push, 'RPUSH', queue, step_of(tag), { text }) then
    release({ tag })
  end
end

local function finish(tag, held, action, due, counts, reason)
  local text, queue
  if action ~= 'gone' then
    text, queue = split(held)
  end
  if text and action == 'back' then
    put_back(tag, counts == '1' and text or uncounted(text), queue, due)
    return
  end
  release({ tag })
  if text and action == 'dead' then
    bury(tag, reason, text, queue)
  end
end

need_no_memory()
local void = {}
i = 4
while i <= #ARGV do
  local tag, publications = ARGV[i], tonumber(ARGV[i + 5])
  local held = call('HGET', UNACKED, tag)
  if held then
    finish(tag, held, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  else
    table.insert(void, tag)
  end
  i = i + 6
  for _ = 1, publications do
    if held then
      publish(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    end
    i = i + 4
  end
end
return void
